#include "gateway/dns_records.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>

namespace moonpool::gateway {

namespace {

using Bytes = std::span<const unsigned char>;

constexpr std::size_t kHeaderSize = 12;
constexpr std::size_t kQuestionTail = 4;  // type and class
constexpr std::size_t kLongestName = 255;
constexpr unsigned kClassIn = 1;
constexpr unsigned kTypeA = 1;
constexpr unsigned kTypeAaaa = 28;
constexpr unsigned kTypeSrv = 33;
constexpr std::size_t kSrvFixedSize = 6;

// Reads forwards; every read beyond the end says so and nothing else happens.
class Reader {
 public:
  Reader(Bytes message, std::size_t at) : message_(message), at_(at) {}

  std::optional<unsigned> number(std::size_t size) {
    if (message_.size() - at_ < size) return std::nullopt;
    unsigned value = 0;
    for (std::size_t i = 0; i < size; ++i) value = value << 8 | message_[at_++];
    return value;
  }

  bool skip(std::size_t size) {
    if (message_.size() - at_ < size) return false;
    at_ += size;
    return true;
  }

  // A name, its compression followed (RFC 1035, 4.1.4): a pointer has to go back, so that this ends.
  std::optional<std::string> name() {
    std::string text;
    std::size_t from = at_;
    std::size_t end = 0;  // behind the name, where a pointer was followed
    for (;;) {
      if (from >= message_.size()) return std::nullopt;
      const unsigned length = message_[from];
      if (length >= 0xC0) {
        if (from + 1 >= message_.size()) return std::nullopt;
        const std::size_t target = (length & 0x3FU) << 8 | message_[from + 1];
        if (end == 0) end = from + 2;
        if (target >= from) return std::nullopt;
        from = target;
        continue;
      }
      if (length > 63 || message_.size() - from <= length) return std::nullopt;
      if (length == 0) {
        at_ = end == 0 ? from + 1 : end;
        return text;
      }
      if (text.size() + length + 1 > kLongestName) return std::nullopt;
      if (!text.empty()) text += '.';
      text.append(message_.begin() + static_cast<std::ptrdiff_t>(from) + 1,
                  message_.begin() + static_cast<std::ptrdiff_t>(from + 1 + length));
      from += 1 + length;
    }
  }

  [[nodiscard]] std::size_t at() const { return at_; }

 private:
  Bytes message_;
  std::size_t at_;
};

// Calls `take` for each record of the type in the answer section. False when the bytes are no such message.
bool each_record(Bytes message, unsigned type, const std::function<bool(std::size_t at, std::size_t size)>& take) {
  if (message.size() < kHeaderSize) return false;
  Reader reader(message, 4);
  const auto questions = reader.number(2);
  const auto answers = reader.number(2);
  if (!questions || !answers || !reader.skip(4)) return false;
  for (unsigned i = 0; i < *questions; ++i) {
    if (!reader.name() || !reader.skip(kQuestionTail)) return false;
  }
  for (unsigned i = 0; i < *answers; ++i) {
    if (!reader.name()) return false;
    const auto its_type = reader.number(2);
    const auto its_class = reader.number(2);
    if (!its_type || !its_class || !reader.skip(4)) return false;
    const auto size = reader.number(2);
    const std::size_t at = reader.at();
    if (!size || !reader.skip(*size)) return false;
    if (*its_type == type && *its_class == kClassIn && !take(at, *size)) return false;
  }
  return true;
}

Status no_answer() { return Status(ErrorCode::kProtocol, "the name server's answer is no DNS message"); }

}  // namespace

Result<std::vector<SrvRecord>> parse_srv_answer(Bytes answer) {
  std::vector<SrvRecord> records;
  const bool good = each_record(answer, kTypeSrv, [&](std::size_t at, std::size_t size) {
    if (size <= kSrvFixedSize) return false;
    Reader reader(answer, at);
    SrvRecord record;
    record.priority = static_cast<std::uint16_t>(reader.number(2).value_or(0));
    record.weight = static_cast<std::uint16_t>(reader.number(2).value_or(0));
    record.port = static_cast<std::uint16_t>(reader.number(2).value_or(0));
    auto target = reader.name();
    if (!target || reader.at() != at + size) return false;
    record.target = std::move(*target);
    if (!record.target.empty()) records.push_back(std::move(record));
    return true;
  });
  if (!good) return no_answer();
  const auto lowest =
      std::min_element(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.priority < b.priority; });
  std::vector<SrvRecord> first_tier;
  for (const SrvRecord& record : records) {
    const auto same = [&](const SrvRecord& other) { return other.port == record.port && other.target == record.target; };
    if (record.priority == lowest->priority && std::none_of(first_tier.begin(), first_tier.end(), same)) first_tier.push_back(record);
  }
  return first_tier;
}

Result<std::vector<std::string>> parse_address_answer(Bytes answer, bool ipv6) {
  std::vector<std::string> addresses;
  const bool good = each_record(answer, ipv6 ? kTypeAaaa : kTypeA, [&](std::size_t at, std::size_t size) {
    if (size != (ipv6 ? sizeof(in6_addr) : sizeof(in_addr))) return false;
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (::inet_ntop(ipv6 ? AF_INET6 : AF_INET, answer.data() + at, text.data(), text.size()) == nullptr) return false;
    addresses.emplace_back(text.data());
    return true;
  });
  if (!good) return no_answer();
  return addresses;
}

}  // namespace moonpool::gateway
