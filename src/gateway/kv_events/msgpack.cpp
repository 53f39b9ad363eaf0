#include "gateway/kv_events/msgpack.h"

namespace moonpool::gateway {

namespace {

using Kind = MsgpackItem::Kind;

MsgpackItem scalar(Kind kind, std::uint64_t number = 0) { return {kind, number, {}}; }

std::uint64_t sign_extended(std::uint64_t value, unsigned width) {
  const unsigned unused = 64 - 8 * width;
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(value << unused) >> unused);
}

}  // namespace

std::optional<std::uint64_t> MsgpackReader::big_endian(unsigned width) {
  if (bytes_.size() - at_ < width) return std::nullopt;
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) value = value << 8 | static_cast<unsigned char>(bytes_[at_++]);
  return value;
}

std::optional<MsgpackItem> MsgpackReader::blob(Kind kind, std::optional<std::uint64_t> size) {
  if (!size || bytes_.size() - at_ < *size) return std::nullopt;
  MsgpackItem item{kind, 0, bytes_.substr(at_, *size)};
  at_ += *size;
  return item;
}

std::optional<MsgpackItem> MsgpackReader::container(Kind kind, std::optional<std::uint64_t> count, std::uint64_t each) {
  if (!count || *count > (bytes_.size() - at_) / each) return std::nullopt;
  return scalar(kind, *count);
}

std::optional<MsgpackItem> MsgpackReader::next() {
  if (at_ >= bytes_.size()) return std::nullopt;
  const auto head = static_cast<unsigned char>(bytes_[at_++]);
  if (head <= 0x7f) return scalar(Kind::kUnsigned, head);
  if (head <= 0x8f) return container(Kind::kMap, head & 0x0f, 2);
  if (head <= 0x9f) return container(Kind::kArray, head & 0x0f, 1);
  if (head <= 0xbf) return blob(Kind::kText, head & 0x1f);
  if (head >= 0xe0) return scalar(Kind::kSigned, sign_extended(head, 1));
  const auto number = [&](Kind kind, unsigned width) -> std::optional<MsgpackItem> {
    const auto value = big_endian(width);
    if (!value) return std::nullopt;
    return scalar(kind, kind == Kind::kSigned ? sign_extended(*value, width) : *value);
  };
  switch (head) {
    case 0xc0:
      return scalar(Kind::kNil);
    case 0xc2:
    case 0xc3:
      return scalar(Kind::kBool, head & 1U);
    case 0xc4:
    case 0xc5:
    case 0xc6:
      return blob(Kind::kBytes, big_endian(1U << (head - 0xc4)));
    case 0xc7:
    case 0xc8:
    case 0xc9: {  // an extension: its type is one byte more
      const auto size = big_endian(1U << (head - 0xc7));
      if (!size || *size == ~std::uint64_t{0}) return std::nullopt;
      return blob(Kind::kOther, *size + 1);
    }
    case 0xca:
      return number(Kind::kFloat, 4);
    case 0xcb:
      return number(Kind::kFloat, 8);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
      return number(Kind::kUnsigned, 1U << (head - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
      return number(Kind::kSigned, 1U << (head - 0xd0));
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
      return blob(Kind::kOther, (std::uint64_t{1} << (head - 0xd4)) + 1);
    case 0xd9:
    case 0xda:
    case 0xdb:
      return blob(Kind::kText, big_endian(1U << (head - 0xd9)));
    case 0xdc:
    case 0xdd:
      return container(Kind::kArray, big_endian(2U << (head - 0xdc)), 1);
    case 0xde:
    case 0xdf:
      return container(Kind::kMap, big_endian(2U << (head - 0xde)), 2);
    default:
      return std::nullopt;  // 0xc1 is never used
  }
}

bool MsgpackReader::skip() { return skip(0); }

bool MsgpackReader::skip(unsigned depth) {
  if (depth > kDeepestMsgpack) return false;
  const auto item = next();
  if (!item) return false;
  std::uint64_t values = 0;
  if (item->kind == Kind::kArray) values = item->number;
  if (item->kind == Kind::kMap) values = item->number * 2;
  for (std::uint64_t i = 0; i < values; ++i) {
    if (!skip(depth + 1)) return false;
  }
  return true;
}

std::string_view MsgpackReader::raw() {
  const std::size_t begin = at_;
  if (!skip(0)) return {};
  return bytes_.substr(begin, at_ - begin);
}

}  // namespace moonpool::gateway
