package main

import (
	"context"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/utils/ptr"
)

// A selector is one expression and devices to ask it about.
type selector struct {
	Expression string         `json:"expression"`
	Devices    []driverDevice `json:"devices"`
}

type driverDevice struct {
	Driver string             `json:"driver"`
	Device resourceapi.Device `json:"device"`
}

type judgement struct {
	// Why kube-apiserver would refuse the expression; empty if it would not.
	Refused string `json:"refused,omitempty"`
	// The estimate for the worst case; 0 where it does not compile.
	Cost uint64 `json:"cost"`
	// One for each device, in their order; none where the expression does not compile. One that is too costly for
	// kube-apiserver has verdicts all the same.
	Verdicts []verdict `json:"verdicts,omitempty"`
}

// A verdict is a value, or the error instead of one.
type verdict struct {
	Value bool   `json:"value"`
	Error string `json:"error,omitempty"`
}

// answerSelector compiles as kube-apiserver does when a claim is created, and evaluates as kube-scheduler does.
func answerSelector(asked *selector) (answer judgement) {
	// cel-go's checks panic on some expressions ([?optional.none()]); in kube-apiserver that fails the request.
	defer func() {
		if cause := recover(); cause != nil {
			answer = judgement{Refused: fmt.Sprintf("panic: %v", cause)}
		}
	}()
	if size := len(asked.Expression); size > resourceapi.CELSelectorExpressionMaxLength {
		return judgement{Refused: fmt.Sprintf("has %d bytes, may have %d", size, resourceapi.CELSelectorExpressionMaxLength)}
	}
	compiler := cel.GetCompiler(allSelectorFeatures)
	forNew := cel.Options{EnvType: ptr.To[environment.Type](environment.NewExpressions)}
	compiled := compiler.CompileCELExpression(asked.Expression, forNew)
	if compiled.Error != nil {
		return judgement{Refused: compiled.Error.Detail}
	}
	answer.Cost = compiled.MaxCost
	if answer.Cost > resourceapi.CELSelectorExpressionMaxCost {
		answer.Refused = "too complex, exceeds cost limit"
	}
	stored := compiler.CompileCELExpression(asked.Expression, cel.Options{DisableCostEstimation: true})
	if stored.Error != nil {
		// What may be stored has to stay valid, so this would be upstream's own mistake.
		return judgement{Refused: "only as a stored expression: " + stored.Error.Detail}
	}
	for i := range asked.Devices {
		answer.Verdicts = append(answer.Verdicts, evaluate(&stored, &asked.Devices[i]))
	}
	return answer
}

func evaluate(compiled *cel.CompilationResult, on *driverDevice) verdict {
	matches, _, err := compiled.DeviceMatches(context.Background(), cel.Device{
		Driver:                   on.Driver,
		AllowMultipleAllocations: on.Device.AllowMultipleAllocations,
		Attributes:               on.Device.Attributes,
		Capacity:                 on.Device.Capacity,
	})
	if err != nil {
		return verdict{Error: err.Error()}
	}
	return verdict{Value: matches}
}
