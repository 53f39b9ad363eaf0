// The one error type of Moonpool: every operation that can fail returns Result<T>, and no exception crosses a module's edge.
//
// A Status is an ErrorCode plus a sentence for a person: what failed, with whom (peer, file, key), and what to do about it.
// The codes are the negative integers that engines written for Mooncake already act on (-200 pauses saves in vLLM, say);
// codes of our own start at -2000. Cost: a success carries no allocation; an error carries one string.
// Threads: values, no shared state.
#pragma once

#include <cassert>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace moonpool {

enum class ErrorCode : std::int32_t {
  kOk = 0,
  kInternal = -1,
  kBufferOverflow = -10,
  kSegmentNotFound = -101,
  kSegmentAlreadyExists = -102,
  kClientNotFound = -103,
  kNoAvailableHandle = -200,  // the pool is full: nothing free and nothing evictable
  kInvalidVersion = -300,
  kInvalidKey = -400,
  kWriteFail = -500,
  kInvalidParams = -600,
  kIllegalClient = -601,
  kInvalidWrite = -700,
  kInvalidRead = -701,
  kInvalidReplica = -702,
  kReplicaNotReady = -703,
  kObjectNotFound = -704,
  kObjectAlreadyExists = -705,
  kObjectHasLease = -706,
  kLeaseExpired = -707,
  kReplicaNotFound = -710,
  kReplicaGone = -712,
  kTransferFail = -800,
  kChecksumMismatch = -801,
  kRpcFail = -900,
  kRpcTimeout = -901,
  kMetadataFail = -1000,  // the metadata server (etcd, redis, http) refused or could not be reached
  kNotSupported = -1012,
  kFileOpenFail = -1100,
  kFileReadFail = -1101,
  // Moonpool's own
  kStaleTerm = -2000,         // the caller's master term or grant is older than what the peer has seen
  kStaleIncarnation = -2001,  // the segment was mounted again since the caller learned of it
  kUnauthenticated = -2002,   // the cluster token is missing or wrong
  kProtocol = -2003,          // bytes that are not our protocol, or a version we cannot speak
  kNotRegistered = -2004,     // the master does not know this node (any more): register again
  kRecovering = -2005,        // a restarted master is still hearing from owners: ask again
  kUnavailable = -2006,       // cannot be reached now
  kConfig = -2007,            // a setting, flag or file is wrong
  kCancelled = -2008,
};

// The stable lower-case name of a code ("object_not_found"), for logs, metrics and HTTP bodies.
[[nodiscard]] std::string_view name_of(ErrorCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  [[nodiscard]] bool ok() const { return code_ == ErrorCode::kOk; }
  [[nodiscard]] ErrorCode code() const { return code_; }
  // The integer that Python callers see.
  [[nodiscard]] std::int32_t number() const { return static_cast<std::int32_t>(code_); }
  [[nodiscard]] const std::string& message() const { return message_; }
  // "transfer_fail: write to 10.0.0.2:12345 ...".
  [[nodiscard]] std::string to_string() const;

 private:
  ErrorCode code_ = ErrorCode::kOk;
  std::string message_;
};

// A value or the Status that says why there is none. Reading the value of an error is a programming mistake (asserted).
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {  // NOLINT(google-explicit-constructor)
    assert(!std::get<1>(state_).ok() && "a Result without a value needs an error");
  }
  Result(ErrorCode code, std::string message) : Result(Status(code, std::move(message))) {}

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] T& value() & { return std::get<0>(state_); }
  [[nodiscard]] const T& value() const& { return std::get<0>(state_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  [[nodiscard]] const Status& status() const {
    static const Status kFine;
    return ok() ? kFine : std::get<1>(state_);
  }
  [[nodiscard]] ErrorCode code() const { return status().code(); }

 private:
  std::variant<T, Status> state_;
};

// Returns the error of `expression` (a Status) from the enclosing function.
#define MOONPOOL_RETURN_IF_ERROR(expression)                                   \
  do {                                                                         \
    if (::moonpool::Status moonpool_status_ = (expression); !moonpool_status_.ok()) { \
      return moonpool_status_;                                                 \
    }                                                                          \
  } while (false)

}  // namespace moonpool
