// Where the processes of a cluster leave small facts for each other: which segments a host lends, under which address it is reached.
//
// A flat map from keys to values, both arbitrary bytes, kept by a server that outlives its clients: this master itself (embedded_store.h),
// an HTTP metadata service, etcd or Redis. open_metadata_store() (open_metadata_store.h) makes the one that a URL names.
//
// Cost: one round trip a call, on the caller's thread; not for the data path. Connections are kept and reused.
// What holds for every implementation (metadata_conformance_test.cpp runs on all of them):
//  - a get after a put that was answered gives that value, or a later one; put overwrites; an empty value is a value
//  - a missing key is kObjectNotFound; a key or value beyond the limits below is kInvalidKey or kInvalidParams, before anything is sent
//  - a server that is away, refuses or stays silent makes kMetadataFail before the deadline has passed for long (some milliseconds): its
//  text
//    names the endpoint, the operation, the time waited and what to do, and never a password
//  - after an error whether a put or remove happened is unknown; both may be repeated
//  - a server that was restarted is used again by the next call; no new store object is needed
// Threads: all functions, from any thread, concurrently.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"

namespace moonpool::metadata {

inline constexpr std::size_t kMaxKeyBytes = 4096;
inline constexpr std::size_t kMaxValueBytes = 1U << 20;  // etcd refuses requests above 1.5 MiB

class MetadataStore {
 public:
  virtual ~MetadataStore() = default;

  [[nodiscard]] virtual Result<std::string> get(std::string_view key, Deadline deadline) = 0;
  [[nodiscard]] virtual Status put(std::string_view key, std::string_view value, Deadline deadline) = 0;
  // kObjectNotFound if there was nothing to remove.
  [[nodiscard]] virtual Status remove(std::string_view key, Deadline deadline) = 0;
  // For people, without secrets: "etcd at 10.0.0.1:2379,10.0.0.2:2379".
  [[nodiscard]] virtual std::string describe() const = 0;
};

// Whether the store answers at all: what a process asks at its start, so that a wrong address is told before anything else fails.
[[nodiscard]] Status check_reachable(MetadataStore& store, Deadline deadline);

// For implementations: kInvalidKey / kInvalidParams for what is beyond the limits.
[[nodiscard]] Status check_key(std::string_view key);
[[nodiscard]] Status check_key_and_value(std::string_view key, std::string_view value);
// A key as it may appear in an error text: control characters and whatever is beyond 80 bytes left out.
[[nodiscard]] std::string shown_key(std::string_view key);
// kMetadataFail "<store>: <operation> of '<key>' failed after <n> ms: <why>".
[[nodiscard]] Status metadata_error(const MetadataStore& store, std::string_view operation, std::string_view key,
                                    Deadline::Clock::time_point start, std::string_view why);
// kObjectNotFound.
[[nodiscard]] Status key_not_found(const MetadataStore& store, std::string_view key);

}  // namespace moonpool::metadata
