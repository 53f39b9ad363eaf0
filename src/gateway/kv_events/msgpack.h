// Reads MessagePack, one value after the other, without building a document.
//
// Only what events are made of is given as values (integers, floats, strings and bytes, arrays, maps, nil, booleans); anything else can be
// skipped. Bytes from outside: every read is bounded by the text, a count of elements by the bytes that are left, nesting by
// kDeepestMsgpack (tests/fuzz/gateway_kv_events_fuzz.cpp). Own, because events need some hundred lines of it and no machine that builds
// Moonpool should need another library for them. Threads: values; views are into the given bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace moonpool::gateway {

inline constexpr unsigned kDeepestMsgpack = 32;

struct MsgpackItem {
  enum class Kind { kNil, kBool, kUnsigned, kSigned, kFloat, kText, kBytes, kArray, kMap, kOther };
  Kind kind = Kind::kNil;
  std::uint64_t number = 0;  // kBool, kUnsigned; kSigned as two's complement; kArray and kMap: how many elements, or pairs, follow
  std::string_view bytes;    // kText, kBytes

  [[nodiscard]] bool is_integer() const { return kind == Kind::kUnsigned || kind == Kind::kSigned; }
};

class MsgpackReader {
 public:
  explicit MsgpackReader(std::string_view bytes) : bytes_(bytes) {}

  // The next item: a scalar, or the head of an array or map, whose elements come next. nullopt where the bytes end or are no MessagePack.
  [[nodiscard]] std::optional<MsgpackItem> next();
  // Passes over a whole value. False as above.
  [[nodiscard]] bool skip();
  // The bytes of the whole value that comes next, and passes over it; empty as above.
  [[nodiscard]] std::string_view raw();

 private:
  [[nodiscard]] bool skip(unsigned depth);
  [[nodiscard]] std::optional<std::uint64_t> big_endian(unsigned width);
  [[nodiscard]] std::optional<MsgpackItem> blob(MsgpackItem::Kind kind, std::optional<std::uint64_t> size);
  // `each` is how many values an element has. A count that the bytes cannot hold is an error at once.
  [[nodiscard]] std::optional<MsgpackItem> container(MsgpackItem::Kind kind, std::optional<std::uint64_t> count, std::uint64_t each);

  std::string_view bytes_;
  std::size_t at_ = 0;
};

}  // namespace moonpool::gateway
