// Who may ask the gateway for what: keys of clients, administrators and monitors, known by their SHA-256 alone.
//
// A key that new_key() makes holds 256 random bits, so nobody finds it by trying, however fast the hash: a slow one (as for passwords)
// would cost every request and win nothing. A presented key is hashed and its digest looked up, then compared in constant time; what the
// look-up's time tells is about digests, from which no key can be had. Cost: one hash and one look-up a request.
// Threads: values; a KeyRing that nobody changes may be read from any. Keys themselves are never kept and never logged.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

enum class KeyRole {
  kClient,   // completions and all else that instances answer
  kMonitor,  // /status, /metrics and /instances, where these want a key
  kAdmin,    // these, and /instances/add, remove and role
};
[[nodiscard]] std::string_view name_of(KeyRole role);

using KeyDigest = std::array<unsigned char, 32>;
[[nodiscard]] KeyDigest digest_of(std::string_view key);
[[nodiscard]] std::string hex_of(const KeyDigest& digest);
// kConfig unless the text is 64 hexadecimal digits.
[[nodiscard]] Result<KeyDigest> parse_digest(std::string_view hex);

// What a key is allowed, as its entry in the configuration says.
struct ApiKey {
  std::string name;  // unique; in logs and metrics
  KeyDigest digest{};
  KeyRole role = KeyRole::kClient;
  int priority = 0;                       // of its requests in the queue: lower ones go first, as in vLLM
  double weight = 1;                      // its share among the keys of a priority
  std::uint64_t requests_per_minute = 0;  // 0: any number
  std::uint64_t tokens_per_minute = 0;    // 0: any number
  double burst_s = 60;                    // so many seconds of both may be saved up

  friend bool operator==(const ApiKey&, const ApiKey&) = default;
};
inline constexpr int kPriorityAtMost = 1000;  // and at least its negative
inline constexpr double kLeastWeight = 0.001;
inline constexpr double kGreatestWeight = 1000;

class KeyRing {
 public:
  // kConfig when the name or the digest is there already, or the name is none (letters, digits, '_', '.', '-'; 64 at most).
  [[nodiscard]] Status add(ApiKey key);
  // Null when there is no such key.
  [[nodiscard]] const ApiKey* find(std::string_view presented) const;
  [[nodiscard]] bool has(KeyRole role) const { return counts_[static_cast<std::size_t>(role)] != 0; }
  [[nodiscard]] const std::vector<ApiKey>& all() const { return keys_; }

  friend bool operator==(const KeyRing& a, const KeyRing& b) { return a.keys_ == b.keys_; }

 private:
  std::vector<ApiKey> keys_;
  std::unordered_map<std::string, std::size_t> by_digest_;  // the digest's bytes, the place in keys_
  std::array<std::size_t, 3> counts_{};
};

// A fresh key of 256 random bits. kInternal when the system has no randomness to give.
[[nodiscard]] Result<std::string> new_key();
// What `--new-key NAME` prints: the key, once, and the entry by which the gateway will know it.
[[nodiscard]] Result<std::string> new_key_text(const std::string& name);
[[nodiscard]] bool is_key_name(std::string_view name);

}  // namespace moonpool::gateway
