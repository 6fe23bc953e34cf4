package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"
	"k8s.io/utils/ptr"
)

const defaultTimeout = 5 * time.Second

// A problem is a fleet, who holds what in it, and claims to allocate.
type problem struct {
	Slices     []*resourceapi.ResourceSlice   `json:"slices"`
	Classes    []*resourceapi.DeviceClass     `json:"classes"`
	TaintRules []*resourceapi.DeviceTaintRule `json:"taintRules"`
	// Tried in this order; the first on which the claims fit is taken.
	Nodes []*corev1.Node `json:"nodes"`
	// Claims with an allocation.
	Held   []*resourceapi.ResourceClaim `json:"held"`
	Claims []*resourceapi.ResourceClaim `json:"claims"`
	// All claims in one call, as for the claims of one pod; else one after the other, each finding the devices of
	// those before it taken.
	Together bool `json:"together"`
	// For all calls of the problem.
	TimeoutMS int64 `json:"timeoutMs"`
}

type outcome string

const (
	allocated outcome = "allocated"
	// No node is left on which the claim fits.
	notFound outcome = "not_found"
	// An error that ends the scheduling attempt, whatever other nodes would say.
	failed   outcome = "error"
	timedOut outcome = "timed_out"
)

// An attempt is what became of one claim; of all of them where they are allocated together.
type attempt struct {
	Outcome    outcome                       `json:"outcome"`
	Node       string                        `json:"node,omitempty"`
	Allocation *resourceapi.AllocationResult `json:"allocation,omitempty"`
	Message    string                        `json:"message,omitempty"`
	Seconds    float64                       `json:"seconds"`
}

type solution struct {
	// One for each claim of the problem, in its order.
	Attempts []attempt `json:"attempts"`
}

// Everything that a feature gate could turn off is on.
var (
	allFeatures         = allTrue[structured.Features]()
	allSelectorFeatures = allTrue[cel.Features]()
)

// allTrue returns a struct of booleans, all of them true: what upstream adds is on from the start.
func allTrue[Switches any]() (switches Switches) {
	fields := reflect.ValueOf(&switches).Elem()
	for i := range fields.NumField() {
		fields.Field(i).SetBool(true)
	}
	return switches
}

// allocations keeps compiled selectors from one problem to the next.
type allocations struct {
	selectors *cel.Cache
}

func newAllocations() *allocations {
	return &allocations{selectors: cel.NewCache(1000, allSelectorFeatures)}
}

func (a *allocations) answer(p *problem) solution {
	timeout := time.Duration(p.TimeoutMS) * time.Millisecond
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	world := newWorld(withTaintRules(p.Slices, p.TaintRules), p.Classes, a.selectors)
	for _, claim := range p.Held {
		world.hold(claim.Status.Allocation)
	}
	if p.Together {
		return solution{world.allocate(ctx, p.Nodes, p.Claims)}
	}
	attempts := make([]attempt, 0, len(p.Claims))
	for _, claim := range p.Claims {
		attempts = append(attempts, world.allocate(ctx, p.Nodes, []*resourceapi.ResourceClaim{claim})...)
	}
	return solution{attempts}
}

// A world is what kube-scheduler knows when it starts to schedule a pod.
type world struct {
	slices    []*resourceapi.ResourceSlice
	classes   classes
	selectors *cel.Cache
	taken     structured.AllocatedState
}

func newWorld(slices []*resourceapi.ResourceSlice, known []*resourceapi.DeviceClass, selectors *cel.Cache) *world {
	byName := make(classes, len(known))
	for _, class := range known {
		byName[class.Name] = class
	}
	return &world{
		slices:    slices,
		classes:   byName,
		selectors: selectors,
		taken: structured.AllocatedState{
			AllocatedDevices:         sets.New[structured.DeviceID](),
			AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
			AggregatedCapacity:       structured.NewConsumedCapacityCollection(),
		},
	}
}

// allocate tries one node after the other. What it allocates is taken from then on.
func (w *world) allocate(ctx context.Context, nodes []*corev1.Node, claims []*resourceapi.ResourceClaim) []attempt {
	started := time.Now()
	results, node, err := w.search(ctx, nodes, claims)
	for i := range results {
		w.hold(&results[i])
	}
	shared := attempt{Seconds: time.Since(started).Seconds()}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		shared.Outcome = timedOut
	case errors.Is(err, structured.ErrFailedAllocationOnNode):
		shared.Outcome = notFound
	case err != nil:
		shared.Outcome = failed
	case results == nil:
		shared.Outcome = notFound
	default:
		shared.Outcome = allocated
		shared.Node = node
	}
	if err != nil {
		shared.Message = err.Error()
	}
	attempts := make([]attempt, len(claims))
	for i := range claims {
		attempts[i] = shared
		if results != nil {
			attempts[i].Allocation = &results[i]
		}
	}
	return attempts
}

func (w *world) search(ctx context.Context, nodes []*corev1.Node, claims []*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, string, error) {
	allocator, err := structured.NewAllocator(ctx, allFeatures, w.taken, w.classes, w.slices, w.selectors)
	if err != nil {
		return nil, "", err
	}
	var lastErr error
	for _, node := range nodes {
		results, err := allocator.Allocate(ctx, node, claims)
		if err != nil && !errors.Is(err, structured.ErrFailedAllocationOnNode) {
			return nil, "", err
		}
		if results != nil {
			return results, node.Name, nil
		}
		if err != nil {
			lastErr = err
		}
	}
	return nil, "", lastErr
}

// hold takes what an allocation says, as kube-scheduler does for every allocated claim it sees: admin access takes
// nothing, a share takes capacity, everything else the whole device.
func (w *world) hold(allocation *resourceapi.AllocationResult) {
	for i := range allocation.Devices.Results {
		result := &allocation.Devices.Results[i]
		if ptr.Deref(result.AdminAccess, false) {
			continue
		}
		device := structured.MakeDeviceID(result.Driver, result.Pool, result.Device)
		if result.ShareID == nil {
			w.taken.AllocatedDevices.Insert(device)
			continue
		}
		w.taken.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(device, result.ShareID))
		if result.ConsumedCapacity != nil {
			w.taken.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(device, result.ConsumedCapacity))
		}
	}
}

// withTaintRules adds to the devices the taints of the rules that select them. The allocator takes no rules: in
// kube-scheduler resourceslice/tracker does this before it, in no particular order of the rules.
func withTaintRules(slices []*resourceapi.ResourceSlice, rules []*resourceapi.DeviceTaintRule) []*resourceapi.ResourceSlice {
	matches := func(wanted *string, name string) bool { return wanted == nil || *wanted == name }
	for _, rule := range rules {
		selector := rule.Spec.DeviceSelector
		if selector == nil {
			continue
		}
		for _, slice := range slices {
			if !matches(selector.Driver, slice.Spec.Driver) || !matches(selector.Pool, slice.Spec.Pool.Name) {
				continue
			}
			for i := range slice.Spec.Devices {
				device := &slice.Spec.Devices[i]
				if matches(selector.Device, device.Name) {
					device.Taints = append(device.Taints, rule.Spec.Taint)
				}
			}
		}
	}
	return slices
}

type classes map[string]*resourceapi.DeviceClass

func (c classes) List() ([]*resourceapi.DeviceClass, error) {
	return nil, errors.New("the allocator asks for classes by name only")
}

func (c classes) Get(name string) (*resourceapi.DeviceClass, error) {
	if class, ok := c[name]; ok {
		return class, nil
	}
	return nil, fmt.Errorf("there is no device class %q", name)
}
