#include "gateway/kv_events/zmtp.h"

#include <utility>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kGreetingBytes = 64;
constexpr std::size_t kVersionAt = 10;
constexpr std::size_t kMechanismAt = 12;
constexpr std::size_t kMechanismBytes = 20;
constexpr unsigned kMore = 1;
constexpr unsigned kLong = 2;
constexpr unsigned kCommand = 4;

std::string big_endian(std::uint64_t value, unsigned width) {
  std::string bytes;
  for (unsigned i = width; i-- > 0;) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

std::uint64_t number_at(std::string_view bytes, std::size_t at, unsigned width) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

std::string frame(unsigned flags, std::string_view body) {
  const bool is_long = body.size() > 255;
  std::string bytes(1, static_cast<char>(flags | (is_long ? kLong : 0)));
  bytes += big_endian(body.size(), is_long ? 8 : 1);
  return bytes.append(body);
}

std::string command(std::string_view name, std::string_view body) {
  return frame(kCommand, std::string(1, static_cast<char>(name.size())).append(name).append(body));
}

Status malformed(std::string what) { return Status(ErrorCode::kProtocol, std::move(what)); }

}  // namespace

std::string zmtp_greeting() {
  std::string greeting(kGreetingBytes, '\0');
  greeting[0] = '\xff';
  greeting[9] = '\x7f';
  greeting[kVersionAt] = 3;
  greeting.replace(kMechanismAt, 4, "NULL");
  return greeting;
}

std::string zmtp_ready(std::string_view socket_type) {
  constexpr std::string_view kName = "Socket-Type";
  std::string body(1, static_cast<char>(kName.size()));
  body.append(kName).append(big_endian(socket_type.size(), 4)).append(socket_type);
  return command("READY", body);
}

std::string zmtp_message(const ZmtpMessage& message) {
  std::string bytes;
  for (std::size_t i = 0; i < message.size(); ++i) bytes += frame(i + 1 < message.size() ? kMore : 0, message[i]);
  return bytes;
}

std::string zmtp_subscription(std::string_view topic) { return frame(0, std::string(1, '\1').append(topic)); }

std::string zmtp_ping() { return command("PING", big_endian(0, 2)); }

std::string zmtp_pong(const ZmtpCommand& ping) {
  // A PING's body is two bytes of time to live, then up to 16 that come back.
  const std::string_view body = ping.body;
  return command("PONG", body.size() > 2 ? body.substr(2, 16) : std::string_view());
}

std::string zmtp_socket_type(const ZmtpCommand& ready) {
  const std::string_view body = ready.body;
  for (std::size_t at = 0; at < body.size();) {
    const std::size_t name_size = static_cast<unsigned char>(body[at]);
    if (body.size() - at < 1 + name_size + 4) return {};
    const std::string_view name = body.substr(at + 1, name_size);
    const std::uint64_t value_size = number_at(body, at + 1 + name_size, 4);
    at += 1 + name_size + 4;
    if (body.size() - at < value_size) return {};
    if (name == "Socket-Type") return std::string(body.substr(at, value_size));
    at += value_size;
  }
  return {};
}

Result<bool> ZmtpReader::take_greeting() {
  const std::string_view bytes = bytes_;
  // Told apart as early as possible: who speaks something else may never send 64 bytes.
  if (!bytes.empty() && bytes[0] != '\xff')
    return malformed("the peer does not speak ZeroMQ. Is it the port of --kv-events-config's endpoint?");
  if (bytes.size() > 9 && (static_cast<unsigned char>(bytes[9]) & 1) == 0) return malformed("the peer speaks a ZeroMQ protocol before 3.0");
  if (bytes.size() > kVersionAt && static_cast<unsigned char>(bytes[kVersionAt]) < 3) {
    return malformed("the peer speaks ZMTP " + std::to_string(static_cast<unsigned char>(bytes[kVersionAt])) + ", not 3");
  }
  if (bytes.size() < kGreetingBytes) return false;
  std::string_view mechanism = bytes.substr(kMechanismAt, kMechanismBytes);
  mechanism = mechanism.substr(0, mechanism.find('\0'));
  if (mechanism != "NULL") return malformed("the peer wants a security mechanism other than NULL");
  at_ = kGreetingBytes;
  greeted_ = true;
  return true;
}

Result<std::optional<ZmtpReader::Item>> ZmtpReader::next() {
  using Found = std::optional<Item>;
  if (!greeted_) {
    const auto greeted = take_greeting();
    if (!greeted.ok()) return greeted.status();
    if (!*greeted) return Found();
  }
  for (;;) {
    const std::string_view rest = std::string_view(bytes_).substr(at_);
    const auto need_more = [&] {
      bytes_.erase(0, at_);
      at_ = 0;
      return Found();
    };
    if (rest.empty()) return need_more();
    const unsigned flags = static_cast<unsigned char>(rest[0]);
    if ((flags & ~(kMore | kLong | kCommand)) != 0 || (flags & (kMore | kCommand)) == (kMore | kCommand)) {
      return malformed("a frame has flags that ZMTP 3 does not know");
    }
    const unsigned width = (flags & kLong) != 0 ? 8 : 1;
    if (rest.size() < 1 + width) return need_more();
    const std::uint64_t size = number_at(rest, 1, width);
    if (size > kZmtpFrameAtMost - message_bytes_) {
      return malformed("a message is larger than " + std::to_string(kZmtpFrameAtMost >> 20) + " MiB");
    }
    if (rest.size() - 1 - width < size) return need_more();
    const std::string_view body = rest.substr(1 + width, size);
    at_ += 1 + width + size;
    if ((flags & kCommand) != 0) {
      const std::size_t name_size = body.empty() ? 0 : static_cast<unsigned char>(body[0]);
      if (name_size == 0 || body.size() < 1 + name_size) return malformed("a command has no name");
      return Found(ZmtpCommand{std::string(body.substr(1, name_size)), std::string(body.substr(1 + name_size))});
    }
    if (message_.size() == kZmtpFramesAtMost) return malformed("a message has more than " + std::to_string(kZmtpFramesAtMost) + " frames");
    message_.emplace_back(body);
    message_bytes_ += size;
    if ((flags & kMore) != 0) continue;
    message_bytes_ = 0;
    return Found(std::exchange(message_, {}));
  }
}

}  // namespace moonpool::gateway
