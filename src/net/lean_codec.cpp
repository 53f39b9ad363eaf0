#include "net/lean_codec.h"

namespace moonpool::net::lean {

namespace {
constexpr int kMaxGroupDepth = 100;
constexpr std::size_t kMaxTagBytes = 5;
}  // namespace

bool Reader::next() {
  if (at_ == end_) return false;
  const std::uint8_t* const start = at_;
  const std::uint64_t tag = varint();
  if (!ok_) return false;
  if (static_cast<std::size_t>(at_ - start) > kMaxTagBytes || tag > ~std::uint32_t{0} || tag >> 3 == 0 || (tag & 7) > 5 ||
      static_cast<WireType>(tag & 7) == WireType::kEndGroup) {
    fail();
    return false;
  }
  tag_ = static_cast<std::uint32_t>(tag);
  return true;
}

std::uint64_t Reader::long_varint() {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 70; shift += 7) {
    if (at_ == end_) break;
    const std::uint8_t byte = *at_++;
    value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  fail();
  return 0;
}

std::uint64_t Reader::fixed64() {
  std::uint64_t value = 0;
  if (static_cast<std::size_t>(end_ - at_) < sizeof value) {
    fail();
    return 0;
  }
  std::memcpy(&value, at_, sizeof value);
  at_ += sizeof value;
  return value;
}

std::string_view Reader::bytes() {
  const std::uint64_t length = varint();
  if (!ok_ || length > static_cast<std::uint64_t>(end_ - at_)) {
    fail();
    return {};
  }
  const std::string_view view(reinterpret_cast<const char*>(at_), static_cast<std::size_t>(length));
  at_ += length;
  return view;
}

void Reader::skip_value(WireType type) {
  switch (type) {
    case WireType::kVarint:
      static_cast<void>(varint());
      return;
    case WireType::kFixed64:
      static_cast<void>(fixed64());
      return;
    case WireType::kBytes:
      static_cast<void>(bytes());
      return;
    case WireType::kFixed32:
      if (end_ - at_ < 4) return fail();
      at_ += 4;
      return;
    default:
      return fail();
  }
}

// A group of an unknown field ends with the end tag of its own number; others may be nested in it.
void Reader::skip() {
  if (type() != WireType::kGroup) return skip_value(type());
  std::uint32_t open[kMaxGroupDepth];
  int depth = 0;
  open[depth++] = number();
  while (depth > 0 && ok_) {
    if (at_ == end_) return fail();
    const std::uint64_t tag = varint();
    if (!ok_ || tag > ~std::uint32_t{0} || tag >> 3 == 0 || (tag & 7) > 5) return fail();
    const auto inner = static_cast<std::uint32_t>(tag >> 3);
    const auto kind = static_cast<WireType>(tag & 7);
    if (kind == WireType::kEndGroup) {
      if (open[--depth] != inner) return fail();
    } else if (kind == WireType::kGroup) {
      if (depth == kMaxGroupDepth) return fail();
      open[depth++] = inner;
    } else {
      skip_value(kind);
    }
  }
}

}  // namespace moonpool::net::lean
