// Strong identifiers: a Term is never mistaken for an offset. All are values, comparable and hashable.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace moonpool {

// 128 random bits. `Tag` keeps the kinds apart. The zero value means "none".
template <typename Tag>
class RandomId {
 public:
  RandomId() = default;
  RandomId(std::uint64_t high, std::uint64_t low) : high_(high), low_(low) {}
  [[nodiscard]] static RandomId generate();  // from the kernel's entropy
  // 16 raw bytes, as on the wire; nullopt for any other length.
  [[nodiscard]] static std::optional<RandomId> from_bytes(std::string_view bytes);
  [[nodiscard]] std::string to_bytes() const;
  [[nodiscard]] std::string to_string() const;  // 32 hex digits
  [[nodiscard]] std::uint64_t high() const { return high_; }
  [[nodiscard]] std::uint64_t low() const { return low_; }
  explicit operator bool() const { return (high_ | low_) != 0; }
  auto operator<=>(const RandomId&) const = default;

 private:
  std::uint64_t high_ = 0;
  std::uint64_t low_ = 0;
};

// One life of a process that lends or uses memory: made anew at each setup.
using NodeId = RandomId<struct NodeTag>;
// One mounting of one segment. Travels with every data request; its owner refuses any other.
using Incarnation = RandomId<struct IncarnationTag>;

// A master's reign. Higher is newer. Wall-clock milliseconds at its start, raised above any term that an owner reports.
struct Term {
  std::uint64_t value = 0;
  auto operator<=>(const Term&) const = default;
};

// The version of one put: unique in the cluster's life, later puts compare higher (term first, then the count within it).
// It is also the grant under which its writer may write the extents of that put.
struct Version {
  Term term;
  std::uint64_t count = 0;
  auto operator<=>(const Version&) const = default;
};

}  // namespace moonpool

template <typename Tag>
struct std::hash<moonpool::RandomId<Tag>> {
  std::size_t operator()(const moonpool::RandomId<Tag>& id) const noexcept { return id.high() ^ (id.low() * 0x9E3779B97F4A7C15ULL); }
};
template <>
struct std::hash<moonpool::Version> {
  std::size_t operator()(const moonpool::Version& v) const noexcept { return (v.term.value * 0x9E3779B97F4A7C15ULL) ^ v.count; }
};
