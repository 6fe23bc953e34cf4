// Oracle answers what upstream's code says about DRA claims and selectors, so that tests and benchmarks can compare.
//
//	oracle allocate   problems on stdin, one JSON document a line; one answer a line on stdout
//	oracle cel        the same for selectors
//	oracle bench      runs one scenario of the benchmark and prints its figures
//
// README.md describes the documents. Nothing here decides anything: the allocator and the CEL compiler are those of
// k8s.io/dynamic-resource-allocation, which kube-scheduler and kube-apiserver use.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("say what to do: allocate, cel or bench")
	}
	switch command := arguments[0]; command {
	case "allocate":
		return answerLines(os.Stdin, os.Stdout, newAllocations().answer)
	case "cel":
		return answerLines(os.Stdin, os.Stdout, answerSelector)
	case "bench":
		return bench(arguments[1:], os.Stdout)
	default:
		return fmt.Errorf("%q is none of allocate, cel and bench", command)
	}
}

// answerLines answers one line after the other, each before it reads the next, so that one pipe serves many questions.
func answerLines[Question, Answer any](in io.Reader, out io.Writer, answer func(*Question) Answer) error {
	reader := bufio.NewReaderSize(in, 1<<20)
	writer := bufio.NewWriterSize(out, 1<<20)
	encoder := json.NewEncoder(writer)
	encoder.SetEscapeHTML(false)
	for number := 1; ; number++ {
		line, err := reader.ReadBytes('\n')
		if len(line) > 0 {
			var question Question
			if err := json.Unmarshal(line, &question); err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
			if err := encoder.Encode(answer(&question)); err != nil {
				return err
			}
			if reader.Buffered() == 0 {
				if err := writer.Flush(); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return writer.Flush()
		}
		if err != nil {
			return err
		}
	}
}
