package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/cel"
)

// As many as kube-scheduler keeps.
const compiledSelectors = 10

type figures struct {
	Scenario   string  `json:"scenario"`
	Devices    int     `json:"devices"`
	Claims     int     `json:"claims"`
	Placed     int     `json:"placed"`
	MedianUS   float64 `json:"median_us"`
	P99US      float64 `json:"p99_us"`
	TotalS     float64 `json:"total_s"`
	BuildS     float64 `json:"build_s"`
	PeakRSSMiB float64 `json:"peak_rss_mib"`
	// Claims that were cut off by the limit for one claim or for all of them; they count in the figures above with the
	// time until then.
	TimedOut int `json:"timed_out"`
	// Claims that were never tried, because the limit for all of them had passed.
	NotTried int `json:"not_tried"`
}

// bench allocates claims one after the other on one node, as kube-scheduler does for one pod after the other.
func bench(arguments []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	devices := flags.Int("devices", 1024, "how many devices the fleet has")
	claims := flags.Int("claims", 0, "how many claims to allocate (default: 100; for fill, 90 % of the devices)")
	name := flags.String("scenario", "one", "one of "+strings.Join(scenarioNames(), ", "))
	output := flags.String("o", "json", "the format of the figures; json is the only one")
	claimLimit := flags.Duration("claim-timeout", 30*time.Second, "when to give up on one claim")
	totalLimit := flags.Duration("total-timeout", 2*time.Minute, "when to give up on all claims")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	scenario, ok := scenarios[*name]
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	case !ok:
		return fmt.Errorf("--scenario %s is none of %s", *name, strings.Join(scenarioNames(), ", "))
	case *output != "json":
		return fmt.Errorf("-o %s is not supported, only json is", *output)
	case *devices < 1 || *claims < 0:
		return errors.New("--devices must be at least 1, and --claims not negative")
	}
	if *claims == 0 {
		*claims = defaultClaims(*name, *devices)
	}

	started := time.Now()
	world := newWorld(scenario.fleet(*devices), []*resourceapi.DeviceClass{driverClass()}, cel.NewCache(compiledSelectors, allSelectorFeatures))
	found := figures{Scenario: *name, Devices: *devices, Claims: *claims, BuildS: time.Since(started).Seconds()}
	world.run(scenario.claim, *claimLimit, *totalLimit, &found)
	return json.NewEncoder(out).Encode(found)
}

func (w *world) run(claimFor func(int) *resourceapi.ResourceClaim, claimLimit, totalLimit time.Duration, found *figures) {
	node := []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "node-0"}}}
	all, cancelAll := context.WithTimeout(context.Background(), totalLimit)
	defer cancelAll()
	seconds := make([]float64, 0, found.Claims) // of each claim that was tried
	for k := range found.Claims {
		if all.Err() != nil {
			found.NotTried = found.Claims - k
			break
		}
		claim := []*resourceapi.ResourceClaim{claimFor(k)}
		ctx, cancel := context.WithTimeout(all, claimLimit)
		attempt := w.allocate(ctx, node, claim)[0]
		cancel()
		switch attempt.Outcome {
		case allocated:
			found.Placed++
		case timedOut:
			found.TimedOut++
		}
		seconds = append(seconds, attempt.Seconds)
		found.TotalS += attempt.Seconds
	}
	slices.Sort(seconds)
	found.MedianUS = microseconds(quantile(seconds, 0.5))
	found.P99US = microseconds(quantile(seconds, 0.99))
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err == nil {
		found.PeakRSSMiB = float64(usage.Maxrss) / 1024
	}
}

// quantile interpolates nothing: it is the time of one of the claims.
func quantile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// microseconds keeps one digit after the point.
func microseconds(seconds float64) float64 { return math.Round(seconds*1e7) / 10 }
