#include "gateway/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <algorithm>

namespace moonpool::gateway {

namespace {

constexpr std::string_view kHexDigits = "0123456789abcdef";
constexpr std::size_t kNameAtMost = 64;
constexpr std::size_t kRandomBytes = 32;

std::string bytes_of(const KeyDigest& digest) { return {reinterpret_cast<const char*>(digest.data()), digest.size()}; }

int value_of(char digit) {
  if (digit >= 'A' && digit <= 'F') digit = static_cast<char>(digit - 'A' + 'a');
  const std::size_t value = kHexDigits.find(digit);
  return value == std::string_view::npos ? -1 : static_cast<int>(value);
}

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

}  // namespace

std::string_view name_of(KeyRole role) {
  if (role == KeyRole::kClient) return "client";
  return role == KeyRole::kMonitor ? "monitor" : "admin";
}

KeyDigest digest_of(std::string_view key) {
  KeyDigest digest{};
  unsigned int size = 0;
  // Fails only without memory; then the digest stays what no key has.
  static_cast<void>(::EVP_Digest(key.data(), key.size(), digest.data(), &size, ::EVP_sha256(), nullptr));
  return digest;
}

std::string hex_of(const KeyDigest& digest) {
  std::string hex;
  for (const unsigned char byte : digest) {
    hex += kHexDigits[byte >> 4U];
    hex += kHexDigits[byte & 0xFU];
  }
  return hex;
}

Result<KeyDigest> parse_digest(std::string_view hex) {
  KeyDigest digest{};
  bool good = hex.size() == 2 * digest.size();
  for (std::size_t i = 0; good && i < digest.size(); ++i) {
    const int high = value_of(hex[2 * i]);
    const int low = value_of(hex[2 * i + 1]);
    good = high >= 0 && low >= 0;
    digest[i] = static_cast<unsigned char>(high * 16 + low);
  }
  if (!good) return Status(ErrorCode::kConfig, "this is no SHA-256: allowed are 64 hexadecimal digits, as --new-key prints them");
  return digest;
}

bool is_key_name(std::string_view name) {
  return !name.empty() && name.size() <= kNameAtMost && is_word(name.front()) &&
         std::all_of(name.begin(), name.end(), [](char c) { return is_word(c) || c == '.' || c == '-'; });
}

Status KeyRing::add(ApiKey key) {
  if (!is_key_name(key.name)) {
    return Status(ErrorCode::kConfig,
                  "allowed in a key's name are up to 64 letters, digits, '_', '.' and '-', with a letter, digit or '_' in front");
  }
  for (const ApiKey& other : keys_) {
    if (other.name == key.name) return Status(ErrorCode::kConfig, "two keys are called " + key.name + ": allowed is one key a name");
  }
  if (!by_digest_.emplace(bytes_of(key.digest), keys_.size()).second) {
    return Status(ErrorCode::kConfig, "the key " + key.name + " is there already under another name: allowed is one entry a key");
  }
  ++counts_[static_cast<std::size_t>(key.role)];
  keys_.push_back(std::move(key));
  return Status();
}

const ApiKey* KeyRing::find(std::string_view presented) const {
  if (presented.empty()) return nullptr;
  const KeyDigest digest = digest_of(presented);
  const auto found = by_digest_.find(bytes_of(digest));
  if (found == by_digest_.end()) return nullptr;
  const ApiKey& key = keys_[found->second];
  return ::CRYPTO_memcmp(key.digest.data(), digest.data(), digest.size()) == 0 ? &key : nullptr;
}

Result<std::string> new_key() {
  constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::array<unsigned char, kRandomBytes> random{};
  if (::RAND_bytes(random.data(), static_cast<int>(random.size())) != 1) {
    return Status(ErrorCode::kInternal, "the system gave no random bytes for a key");
  }
  std::string key = "mp-";
  unsigned bits = 0;
  unsigned held = 0;
  for (const unsigned char byte : random) {
    held = (held << 8U | byte) & 0xFFFFU;
    for (bits += 8; bits >= 6; bits -= 6) key += kLetters[held >> (bits - 6) & 0x3FU];
  }
  key += kLetters[held << (6 - bits) & 0x3FU];
  return key;
}

Result<std::string> new_key_text(const std::string& name) {
  if (!is_key_name(name)) return KeyRing().add({name, {}, {}});
  auto key = new_key();
  if (!key.ok()) return key.status();
  return "The key of " + name + ", which is shown this once and kept nowhere:\n\n  " + *key +
         "\n\nIts entry for \"keys\" in the configuration (\"role\": \"client\", \"monitor\" or \"admin\"):\n\n  {\"name\": \"" + name +
         "\", \"role\": \"client\", \"sha256\": \"" + hex_of(digest_of(*key)) + "\"}\n";
}

}  // namespace moonpool::gateway
