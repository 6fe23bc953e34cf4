package main

import (
	"fmt"
	"maps"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// The fleets and claims of the benchmark; README.md describes them, and `dragoman bench` has the same.
const (
	driver          = "gpu.example.com"
	models          = 10
	devicesInFabric = 16
	devicesInSlice  = 128
	slicesInPool    = 8

	gpusInPool      = 8
	partitionsOfGPU = 15
	gpusInMigSlice  = 4
)

type scenario struct {
	fleet func(devices int) []*resourceapi.ResourceSlice
	claim func(k int) *resourceapi.ResourceClaim
}

var scenarios = map[string]scenario{
	"one":    {exclusive, func(k int) *resourceapi.ResourceClaim { return claim(k, request(1), false) }},
	"cel":    {exclusive, func(k int) *resourceapi.ResourceClaim { return claim(k, request(1, selectsModelAndMemory), false) }},
	"gang8":  {exclusive, func(k int) *resourceapi.ResourceClaim { return claim(k, request(8, selectsModel(3)), true) }},
	"gang17": {exclusive, func(k int) *resourceapi.ResourceClaim { return claim(k, request(17), true) }},
	"fill":   {exclusive, func(k int) *resourceapi.ResourceClaim { return claim(k, request(1), false) }},
	"share":  {shared, shareOfModel},
	"mig":    {partitions, partition},
}

func scenarioNames() []string { return slices.Sorted(maps.Keys(scenarios)) }

func defaultClaims(scenario string, devices int) int {
	if scenario == "fill" {
		return max(1, devices*9/10)
	}
	return 100
}

func driverClass() *resourceapi.DeviceClass {
	return &resourceapi.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: driver},
		Spec:       resourceapi.DeviceClassSpec{Selectors: selectors(fmt.Sprintf("device.driver == %q", driver))},
	}
}

// --- claims

var selectsModelAndMemory = fmt.Sprintf(`device.attributes[%q].model == "model-3" && device.capacity[%q].memory.compareTo(quantity("16Gi")) >= 0`, driver, driver)

var migSizes = []int{1, 1, 2, 1, 4, 2, 1, 8}

func selectsModel(model int) string {
	return fmt.Sprintf(`device.attributes[%q].model == "model-%d"`, driver, model)
}

func selectors(expressions ...string) (list []resourceapi.DeviceSelector) {
	for _, each := range expressions {
		list = append(list, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{Expression: each}})
	}
	return list
}

func request(count int64, expressions ...string) *resourceapi.ExactDeviceRequest {
	return &resourceapi.ExactDeviceRequest{
		DeviceClassName: driver,
		AllocationMode:  resourceapi.DeviceAllocationModeExactCount,
		Count:           count,
		Selectors:       selectors(expressions...),
	}
}

func claim(k int, exactly *resourceapi.ExactDeviceRequest, inOneFabric bool) *resourceapi.ResourceClaim {
	name := fmt.Sprintf("claim-%06d", k)
	made := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	made.Spec.Devices.Requests = []resourceapi.DeviceRequest{{Name: "gpu", Exactly: exactly}}
	if inOneFabric {
		made.Spec.Devices.Constraints = []resourceapi.DeviceConstraint{
			{MatchAttribute: ptr.To[resourceapi.FullyQualifiedName](driver + "/fabric")},
		}
	}
	return made
}

func shareOfModel(k int) *resourceapi.ResourceClaim {
	model := k % models
	exactly := request(1, selectsModel(model))
	eighth := resource.NewQuantity(memoryOf(model)/8, resource.BinarySI)
	exactly.Capacity = &resourceapi.CapacityRequirements{
		Requests: map[resourceapi.QualifiedName]resource.Quantity{"memory": *eighth},
	}
	return claim(k, exactly, false)
}

func partition(k int) *resourceapi.ResourceClaim {
	size := migSizes[k%len(migSizes)]
	return claim(k, request(1, fmt.Sprintf("device.attributes[%q].size == %d", driver, size)), false)
}

// --- fleets

func exclusive(devices int) []*resourceapi.ResourceSlice { return plainFleet(devices, false) }

func shared(devices int) []*resourceapi.ResourceSlice { return plainFleet(devices, true) }

func plainFleet(devices int, allowMultipleAllocations bool) (fleet []*resourceapi.ResourceSlice) {
	count := (devices + devicesInSlice - 1) / devicesInSlice
	for index := range count {
		pool := index / slicesInPool
		made := slice(fmt.Sprintf("slice-%04d", index), pool, min(slicesInPool, count-pool*slicesInPool))
		for i := index * devicesInSlice; i < min((index+1)*devicesInSlice, devices); i++ {
			device := plainDevice(i)
			if allowMultipleAllocations {
				device.AllowMultipleAllocations = ptr.To(true)
			}
			made.Spec.Devices = append(made.Spec.Devices, device)
		}
		fleet = append(fleet, made)
	}
	return fleet
}

func memoryOf(model int) int64 { return int64(model+1) * 8 << 30 }

func plainDevice(i int) resourceapi.Device {
	model := i / devicesInFabric % models
	return resourceapi.Device{
		Name: fmt.Sprintf("gpu-%07d", i),
		Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{
			"model":         {StringValue: ptr.To(fmt.Sprintf("model-%d", model))},
			"uuid":          {StringValue: ptr.To(fmt.Sprintf("uuid-%07d", i))},
			"index":         {IntValue: ptr.To(int64(i % 8))},
			"fabric":        {StringValue: ptr.To(fmt.Sprintf("fab-%d", i/devicesInFabric))},
			"driverVersion": {VersionValue: ptr.To("550.54.15")},
		},
		Capacity: map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{
			"memory": {Value: *resource.NewQuantity(memoryOf(model), resource.BinarySI)},
		},
	}
}

// partitions makes pools of 8 GPUs: a slice with their counters, and two with the 60 partitions of 4 GPUs each. The
// last pool has only as many partitions as are left.
func partitions(devices int) (fleet []*resourceapi.ResourceSlice) {
	const devicesInSlice = gpusInMigSlice * partitionsOfGPU
	const devicesInPool = gpusInPool * partitionsOfGPU
	for pool := 0; pool*devicesInPool < devices; pool++ {
		left := min(devices-pool*devicesInPool, devicesInPool)
		deviceSlices := (left + devicesInSlice - 1) / devicesInSlice
		counters := slice(fmt.Sprintf("slice-%04d-counters", pool), pool, 1+deviceSlices)
		for gpu := range gpusInPool {
			counters.Spec.SharedCounters = append(counters.Spec.SharedCounters, resourceapi.CounterSet{
				Name:     fmt.Sprintf("gpu-%d", gpu),
				Counters: counterOf(8),
			})
		}
		fleet = append(fleet, counters)
		for index := range deviceSlices {
			made := slice(fmt.Sprintf("slice-%04d-devices-%d", pool, index), pool, 1+deviceSlices)
			for i := index * devicesInSlice; i < min((index+1)*devicesInSlice, left); i++ {
				made.Spec.Devices = append(made.Spec.Devices, partitionDevice(i/partitionsOfGPU, i%partitionsOfGPU))
			}
			fleet = append(fleet, made)
		}
	}
	return fleet
}

func partitionDevice(gpu, j int) resourceapi.Device {
	// One of 8, two of 4, four of 2, eight of 1: partition j is a node of a binary tree, in breadth-first order.
	size := 8
	for first := 1; j >= first; first = 2*first + 1 {
		size /= 2
	}
	return resourceapi.Device{
		Name:       fmt.Sprintf("gpu-%d-p%d", gpu, j),
		Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"size": {IntValue: ptr.To(int64(size))}},
		ConsumesCounters: []resourceapi.DeviceCounterConsumption{
			{CounterSet: fmt.Sprintf("gpu-%d", gpu), Counters: counterOf(size)},
		},
	}
}

func counterOf(value int) map[string]resourceapi.Counter {
	return map[string]resourceapi.Counter{"slices": {Value: *resource.NewQuantity(int64(value), resource.DecimalSI)}}
}

func slice(name string, pool, slicesInPool int) *resourceapi.ResourceSlice {
	return &resourceapi.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourceapi.ResourceSliceSpec{
			Driver:   driver,
			Pool:     resourceapi.ResourcePool{Name: fmt.Sprintf("rack-%03d", pool), Generation: 1, ResourceSliceCount: int64(slicesInPool)},
			AllNodes: ptr.To(true),
		},
	}
}
