#include "python/bindings/enums.h"

namespace moonpool::python {

namespace nb = nanobind;

void bind_enums(nb::module_& module) {
  nb::enum_<ObjectDataType>(module, "ObjectDataType", nb::is_arithmetic(), "What an object holds; a hint, kept with it.")
      .value("UNKNOWN", ObjectDataType::kUnknown)
      .value("KVCACHE", ObjectDataType::kKvCache)
      .value("TENSOR", ObjectDataType::kTensor)
      .value("WEIGHT", ObjectDataType::kWeight)
      .value("SAMPLE", ObjectDataType::kSample)
      .value("ACTIVATION", ObjectDataType::kActivation)
      .value("GRADIENT", ObjectDataType::kGradient)
      .value("OPTIMIZER_STATE", ObjectDataType::kOptimizerState)
      .value("METADATA", ObjectDataType::kMetadata)
      .value("GENERAL", ObjectDataType::kGeneral)
      .export_values();
  nb::enum_<SoftPinAction>(module, "SoftPinAction", nb::is_arithmetic(), "What a put does to the object's soft pin.")
      .value("PRESERVE", SoftPinAction::kPreserve)
      .value("ENABLE", SoftPinAction::kEnable)
      .value("DISABLE", SoftPinAction::kDisable);
  nb::enum_<ReplicaStatus>(module, "ReplicaStatus", nb::is_arithmetic(), "Where a replica is in its life; only COMPLETE ones are listed.")
      .value("UNDEFINED", ReplicaStatus::kUndefined)
      .value("INITIALIZED", ReplicaStatus::kInitialized)
      .value("PROCESSING", ReplicaStatus::kProcessing)
      .value("COMPLETE", ReplicaStatus::kComplete)
      .value("REMOVED", ReplicaStatus::kRemoved)
      .value("FAILED", ReplicaStatus::kFailed)
      .export_values();
  // Exported after ReplicaStatus: the module's PROCESSING and FAILED are those of a task.
  nb::enum_<TaskStatus>(module, "TaskStatus", nb::is_arithmetic(), "The state of a copy or move task.")
      .value("PENDING", TaskStatus::kPending)
      .value("PROCESSING", TaskStatus::kProcessing)
      .value("SUCCESS", TaskStatus::kSuccess)
      .value("FAILED", TaskStatus::kFailed)
      .export_values();
  nb::enum_<TaskType>(module, "TaskType", nb::is_arithmetic(), "What a task does.")
      .value("REPLICA_COPY", TaskType::kReplicaCopy)
      .value("REPLICA_MOVE", TaskType::kReplicaMove)
      .export_values();
}

}  // namespace moonpool::python
