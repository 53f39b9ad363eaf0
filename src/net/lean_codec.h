// Protobuf's wire format without Protobuf's objects, for the few messages that every put and get exchanges.
//
// A generated class allocates a string for every key of a batch; here keys are views into the received frame, columns are vectors that
// keep their memory from one request to the next, and a message is written into a buffer in one go. proto/wire.proto stays the definition:
// the bytes are the same both ways (lean_codec_test.cpp and a fuzzer hold the two against each other). One difference: `string` fields are
// taken as bytes, whether they are valid UTF-8 or not.
//
// A message is a struct with `template <typename Self, typename Visit> static void fields(Self& m, Visit& visit)`, which calls
// visit(number, member) for each field. Member types: std::string_view (bytes, string), bool and std::uint32_t and std::uint64_t (varints),
// std::int32_t (sint32), Fixed64 (fixed64), std::vector of any of these, and std::vector of messages.
// Cost: a pass to parse, two passes to write, no allocation once the vectors have grown. Threads: pure functions.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace moonpool::net::lean {

// An element of a fixed64 column.
struct Fixed64 {
  std::uint64_t value = 0;
  bool operator==(const Fixed64&) const = default;
};

enum class WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kGroup = 3, kEndGroup = 4, kFixed32 = 5 };

template <typename T>
concept Varint = std::same_as<T, bool> || std::same_as<T, std::uint32_t> || std::same_as<T, std::uint64_t> || std::same_as<T, std::int32_t>;
template <typename T>
concept Packable = Varint<T> || std::same_as<T, Fixed64>;

[[nodiscard]] constexpr std::size_t varint_size(std::uint64_t value) { return static_cast<std::size_t>(std::bit_width(value | 1) + 6) / 7; }
// The number on the wire; only std::int32_t is zigzag-coded (sint32).
template <Varint T>
[[nodiscard]] constexpr std::uint64_t to_wire(T value) {
  if constexpr (std::same_as<T, std::int32_t>) {
    return (static_cast<std::uint32_t>(value) << 1) ^ static_cast<std::uint32_t>(value >> 31);
  } else {
    return static_cast<std::uint64_t>(value);
  }
}
template <Varint T>
[[nodiscard]] constexpr T from_wire(std::uint64_t number) {
  if constexpr (std::same_as<T, std::int32_t>) {
    const auto half = static_cast<std::uint32_t>(number);
    return static_cast<std::int32_t>((half >> 1) ^ (~(half & 1) + 1));
  } else if constexpr (std::same_as<T, bool>) {
    return number != 0;
  } else {
    return static_cast<T>(number);
  }
}

// ------------------------------------------------------------------------------------------------ reading

// One field after the other. Anything malformed ends it with ok() false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : at_(reinterpret_cast<const std::uint8_t*>(bytes.data())), end_(at_ + bytes.size()) {}

  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool done() const { return at_ == end_; }
  [[nodiscard]] std::uint32_t number() const { return tag_ >> 3; }
  [[nodiscard]] WireType type() const { return static_cast<WireType>(tag_ & 7); }
  // The next field's tag; false at the end.
  bool next();
  std::uint64_t varint() {
    if (at_ != end_ && *at_ < 0x80) return *at_++;
    return long_varint();
  }
  std::uint64_t fixed64();
  std::string_view bytes();
  // Over the value of the current field.
  void skip();

 private:
  std::uint64_t long_varint();
  void skip_value(WireType type);
  void fail() {
    ok_ = false;
    at_ = end_;
  }

  const std::uint8_t* at_;
  const std::uint8_t* end_;
  std::uint32_t tag_ = 0;
  bool ok_ = true;
};

template <typename Message>
[[nodiscard]] bool parse(std::span<const std::byte> bytes, Message& message);

// Each read() takes the current field's value if its wire type is one that the member can have; false: not ours, skip it.
template <Varint T>
bool read(Reader& reader, T& member) {
  if (reader.type() != WireType::kVarint) return false;
  member = from_wire<T>(reader.varint());
  return true;
}
inline bool read(Reader& reader, Fixed64& member) {
  if (reader.type() != WireType::kFixed64) return false;
  member.value = reader.fixed64();
  return true;
}
inline bool read(Reader& reader, std::string_view& member) {
  if (reader.type() != WireType::kBytes) return false;
  member = reader.bytes();
  return true;
}
template <Packable T>
bool read(Reader& reader, std::vector<T>& column) {
  if (reader.type() != WireType::kBytes) {
    T element{};
    if (!read(reader, element)) return false;
    if (reader.ok()) column.push_back(element);
    return true;
  }
  const std::string_view packed = reader.bytes();
  if constexpr (std::same_as<T, Fixed64>) {
    static_assert(std::endian::native == std::endian::little);
    if (packed.size() % sizeof(T) != 0) {
      reader = Reader({});
      static_cast<void>(reader.fixed64());  // not ok from here on
      return true;
    }
    const std::size_t have = column.size();
    column.resize(have + packed.size() / sizeof(T));
    if (!packed.empty()) std::memcpy(column.data() + have, packed.data(), packed.size());
  } else {
    Reader elements(std::as_bytes(std::span(packed)));
    while (!elements.done()) {
      const auto number = elements.varint();
      if (elements.ok()) column.push_back(from_wire<T>(number));
    }
    if (!elements.ok()) reader = elements;
  }
  return true;
}
inline bool read(Reader& reader, std::vector<std::string_view>& column) {
  if (reader.type() != WireType::kBytes) return false;
  const std::string_view bytes = reader.bytes();
  if (reader.ok()) column.push_back(bytes);
  return true;
}
template <typename Message>
bool read(Reader& reader, std::vector<Message>& column) {
  if (reader.type() != WireType::kBytes) return false;
  const std::string_view bytes = reader.bytes();
  if (!reader.ok()) return true;
  if (!parse(std::as_bytes(std::span(bytes)), column.emplace_back())) {
    reader = Reader({});
    static_cast<void>(reader.fixed64());
  }
  return true;
}

namespace detail {
struct Clear {
  template <typename T>
  void operator()(std::uint32_t, T& member) {
    member = T{};
  }
  template <typename T>
  void operator()(std::uint32_t, std::vector<T>& column) {
    column.clear();
  }
};
struct Take {
  Reader& reader;
  bool taken = false;
  template <typename T>
  void operator()(std::uint32_t number, T& member) {
    if (number == reader.number() && !taken) taken = read(reader, member);
  }
};
}  // namespace detail

// Empties the message and keeps the memory of its columns.
template <typename Message>
void clear(Message& message) {
  detail::Clear visit;
  Message::fields(message, visit);
}

// False when the bytes are not a message. Views of the message refer to `bytes`.
template <typename Message>
bool parse(std::span<const std::byte> bytes, Message& message) {
  clear(message);
  Reader reader(bytes);
  while (reader.next()) {
    detail::Take visit{reader};
    // The tag that the visit compares with must not change while a value is read.
    Message::fields(message, visit);
    if (!visit.taken) reader.skip();
  }
  return reader.ok();
}

// ------------------------------------------------------------------------------------------------ writing

namespace detail {
template <Varint T>
std::size_t packed_size(const std::vector<T>& column) {
  std::size_t size = 0;
  for (const T element : column) size += varint_size(to_wire(element));
  return size;
}
inline std::size_t packed_size(const std::vector<Fixed64>& column) { return column.size() * sizeof(Fixed64); }
inline std::size_t delimited(std::uint32_t number, std::size_t size) {
  return varint_size(std::uint64_t{number} << 3) + varint_size(size) + size;
}

struct Size {
  std::size_t size = 0;
  template <Varint T>
  void operator()(std::uint32_t number, T member) {
    if (member != T{}) size += varint_size(std::uint64_t{number} << 3) + varint_size(to_wire(member));
  }
  void operator()(std::uint32_t number, Fixed64 member) {
    if (member.value != 0) size += varint_size(std::uint64_t{number} << 3) + sizeof(member);
  }
  void operator()(std::uint32_t number, std::string_view member) {
    if (!member.empty()) size += delimited(number, member.size());
  }
  template <Packable T>
  void operator()(std::uint32_t number, const std::vector<T>& column) {
    if (!column.empty()) size += delimited(number, packed_size(column));
  }
  void operator()(std::uint32_t number, const std::vector<std::string_view>& column) {
    for (const auto bytes : column) size += delimited(number, bytes.size());
  }
  template <typename Message>
  void operator()(std::uint32_t number, const std::vector<Message>& column) {
    for (const auto& message : column) {
      Size inner;
      Message::fields(message, inner);
      size += delimited(number, inner.size);
    }
  }
};

struct Write {
  std::uint8_t* at;
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) *at++ = static_cast<std::uint8_t>(value | 0x80);
    *at++ = static_cast<std::uint8_t>(value);
  }
  void tag(std::uint32_t number, WireType type) { varint((std::uint64_t{number} << 3) | static_cast<std::uint64_t>(type)); }
  void raw(const void* data, std::size_t size) {
    if (size > 0) std::memcpy(at, data, size);
    at += size;
  }
  template <Varint T>
  void operator()(std::uint32_t number, T member) {
    if (member == T{}) return;
    tag(number, WireType::kVarint);
    varint(to_wire(member));
  }
  void operator()(std::uint32_t number, Fixed64 member) {
    if (member.value == 0) return;
    tag(number, WireType::kFixed64);
    raw(&member.value, sizeof member.value);
  }
  void operator()(std::uint32_t number, std::string_view member) {
    if (!member.empty()) bytes(number, member);
  }
  template <Packable T>
  void operator()(std::uint32_t number, const std::vector<T>& column) {
    if (column.empty()) return;
    tag(number, WireType::kBytes);
    varint(packed_size(column));
    if constexpr (std::same_as<T, Fixed64>) {
      raw(column.data(), column.size() * sizeof(T));
    } else {
      for (const T element : column) varint(to_wire(element));
    }
  }
  void operator()(std::uint32_t number, const std::vector<std::string_view>& column) {
    for (const auto element : column) bytes(number, element);
  }
  template <typename Message>
  void operator()(std::uint32_t number, const std::vector<Message>& column) {
    for (const auto& message : column) {
      Size inner;
      Message::fields(message, inner);
      tag(number, WireType::kBytes);
      varint(inner.size);
      Message::fields(message, *this);
    }
  }

 private:
  void bytes(std::uint32_t number, std::string_view element) {
    tag(number, WireType::kBytes);
    varint(element.size());
    raw(element.data(), element.size());
  }
};
}  // namespace detail

template <typename Message>
[[nodiscard]] std::size_t size_of(const Message& message) {
  detail::Size visit;
  Message::fields(message, visit);
  return visit.size;
}

// Replaces the content of `buffer` (a std::string or a std::vector of bytes); its memory is kept.
template <typename Buffer, typename Message>
void write(const Message& message, Buffer& buffer) {
  buffer.resize(size_of(message));
  detail::Write visit{reinterpret_cast<std::uint8_t*>(buffer.data())};
  Message::fields(message, visit);
}

}  // namespace moonpool::net::lean
