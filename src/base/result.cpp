#include "base/result.h"

namespace moonpool {

std::string_view name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOk:
      return "ok";
    case ErrorCode::kInternal:
      return "internal_error";
    case ErrorCode::kBufferOverflow:
      return "buffer_overflow";
    case ErrorCode::kSegmentNotFound:
      return "segment_not_found";
    case ErrorCode::kSegmentAlreadyExists:
      return "segment_already_exists";
    case ErrorCode::kClientNotFound:
      return "client_not_found";
    case ErrorCode::kNoAvailableHandle:
      return "no_available_handle";
    case ErrorCode::kInvalidVersion:
      return "invalid_version";
    case ErrorCode::kInvalidKey:
      return "invalid_key";
    case ErrorCode::kWriteFail:
      return "write_fail";
    case ErrorCode::kInvalidParams:
      return "invalid_params";
    case ErrorCode::kIllegalClient:
      return "illegal_client";
    case ErrorCode::kInvalidWrite:
      return "invalid_write";
    case ErrorCode::kInvalidRead:
      return "invalid_read";
    case ErrorCode::kInvalidReplica:
      return "invalid_replica";
    case ErrorCode::kReplicaNotReady:
      return "replica_not_ready";
    case ErrorCode::kObjectNotFound:
      return "object_not_found";
    case ErrorCode::kObjectAlreadyExists:
      return "object_already_exists";
    case ErrorCode::kObjectHasLease:
      return "object_has_lease";
    case ErrorCode::kLeaseExpired:
      return "lease_expired";
    case ErrorCode::kReplicaNotFound:
      return "replica_not_found";
    case ErrorCode::kReplicaGone:
      return "replica_gone";
    case ErrorCode::kTransferFail:
      return "transfer_fail";
    case ErrorCode::kChecksumMismatch:
      return "checksum_mismatch";
    case ErrorCode::kRpcFail:
      return "rpc_fail";
    case ErrorCode::kRpcTimeout:
      return "rpc_timeout";
    case ErrorCode::kMetadataFail:
      return "metadata_fail";
    case ErrorCode::kNotSupported:
      return "not_supported";
    case ErrorCode::kFileOpenFail:
      return "file_open_fail";
    case ErrorCode::kFileReadFail:
      return "file_read_fail";
    case ErrorCode::kStaleTerm:
      return "stale_term";
    case ErrorCode::kStaleIncarnation:
      return "stale_incarnation";
    case ErrorCode::kUnauthenticated:
      return "unauthenticated";
    case ErrorCode::kProtocol:
      return "protocol";
    case ErrorCode::kNotRegistered:
      return "not_registered";
    case ErrorCode::kRecovering:
      return "recovering";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kConfig:
      return "config";
    case ErrorCode::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

std::string Status::to_string() const {
  std::string text(name_of(code_));
  if (!message_.empty()) {
    text += ": ";
    text += message_;
  }
  return text;
}

}  // namespace moonpool
