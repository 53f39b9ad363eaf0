// The enumerations and constants of mooncake.store. Values are those that engines have written down.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace moonpool::python {

enum class ObjectDataType : std::uint8_t {
  kUnknown = 0,
  kKvCache = 1,
  kTensor = 2,
  kWeight = 3,
  kSample = 4,
  kActivation = 5,
  kGradient = 6,
  kOptimizerState = 7,
  kMetadata = 8,
  kGeneral = 9
};
enum class SoftPinAction : std::uint8_t { kPreserve = 0, kEnable = 1, kDisable = 2 };
enum class ReplicaStatus : std::uint8_t { kUndefined = 0, kInitialized = 1, kProcessing = 2, kComplete = 3, kRemoved = 4, kFailed = 5 };
enum class TaskStatus : std::uint8_t { kPending = 0, kProcessing = 1, kFailed = 2, kSuccess = 3 };
enum class TaskType : std::uint8_t { kReplicaCopy = 0, kReplicaMove = 1 };

void bind_enums(nanobind::module_& module);

}  // namespace moonpool::python
