#include "base/ids.h"

#include <sys/random.h>

#include <cstdio>
#include <random>

namespace moonpool {

namespace {
std::array<std::uint64_t, 2> entropy() {
  std::array<std::uint64_t, 2> words{};
  if (::getrandom(words.data(), sizeof(words), 0) != static_cast<ssize_t>(sizeof(words))) {
    std::random_device device;  // an old kernel or an interrupted call
    for (auto& word : words) word = (static_cast<std::uint64_t>(device()) << 32) | device();
  }
  return words;
}
}  // namespace

template <typename Tag>
RandomId<Tag> RandomId<Tag>::generate() {
  RandomId id;
  while (!id) {
    const auto words = entropy();
    id = RandomId(words[0], words[1]);
  }
  return id;
}

template <typename Tag>
std::optional<RandomId<Tag>> RandomId<Tag>::from_bytes(std::string_view bytes) {
  if (bytes.size() != 16) return std::nullopt;
  RandomId id;
  std::memcpy(&id.high_, bytes.data(), 8);
  std::memcpy(&id.low_, bytes.data() + 8, 8);
  return id;
}

template <typename Tag>
std::string RandomId<Tag>::to_bytes() const {
  std::string bytes(16, '\0');
  std::memcpy(bytes.data(), &high_, 8);
  std::memcpy(bytes.data() + 8, &low_, 8);
  return bytes;
}

template <typename Tag>
std::string RandomId<Tag>::to_string() const {
  std::array<char, 33> text{};
  std::snprintf(text.data(), text.size(), "%016llx%016llx", static_cast<unsigned long long>(high_), static_cast<unsigned long long>(low_));
  return std::string(text.data(), 32);
}

template class RandomId<NodeTag>;
template class RandomId<IncarnationTag>;

}  // namespace moonpool
