#include "cli/doctor/host_files.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <system_error>

namespace moonpool::cli::doctor {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kMostBytes = 1U << 20;
constexpr std::string_view kBlanks = " \t\r\n\0";

// "node2" before "node10".
bool by_number(const std::string& a, const std::string& b) {
  const auto digits = [](const std::string& text) { return text.find_first_of("0123456789"); };
  if (digits(a) == digits(b) && a.substr(0, digits(a)) == b.substr(0, digits(b)) && a.size() != b.size() && digits(a) != std::string::npos)
    return a.size() < b.size();
  return a < b;
}

}  // namespace

fs::path HostFiles::at(std::string_view path) const {
  while (path.starts_with('/')) path.remove_prefix(1);
  return root_ / path;
}

std::optional<std::string> HostFiles::read(std::string_view path) const {
  std::ifstream file(at(path), std::ios::binary);
  if (!file) return std::nullopt;
  std::string text(4096, '\0');
  std::size_t size = 0;
  // The size of such a file is not known before its end.
  while (size < kMostBytes && file.read(text.data() + size, static_cast<std::streamsize>(text.size() - size))) {
    size = text.size();
    text.resize(text.size() * 2);
  }
  if (file.bad()) return std::nullopt;
  size += static_cast<std::size_t>(file.gcount());
  text.resize(std::min(size, kMostBytes));
  const auto last = text.find_last_not_of(std::string(kBlanks.data(), 5));
  text.erase(last == std::string::npos ? 0 : last + 1);
  text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  return text;
}

std::optional<std::int64_t> HostFiles::read_number(std::string_view path) const {
  const auto text = read(path);
  if (!text) return std::nullopt;
  std::string_view digits = *text;
  const bool hexadecimal = digits.starts_with("0x");
  if (hexadecimal) digits.remove_prefix(2);
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number, hexadecimal ? 16 : 10);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

std::vector<std::string> HostFiles::names(std::string_view path) const {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator entry(at(path), error), end; !error && entry != end; entry.increment(error)) {
    found.push_back(entry->path().filename().string());
  }
  std::sort(found.begin(), found.end(), by_number);
  return found;
}

std::optional<std::string> HostFiles::link_name(std::string_view path) const {
  std::error_code error;
  const fs::path target = fs::read_symlink(at(path), error);
  if (error) return std::nullopt;
  return target.filename().string();
}

std::optional<std::string> HostFiles::real_name(std::string_view path) const {
  std::error_code error;
  const fs::path target = fs::canonical(at(path), error);
  if (error) return std::nullopt;
  return target.filename().string();
}

bool HostFiles::exists(std::string_view path) const {
  std::error_code error;
  return fs::exists(at(path), error);
}

bool HostFiles::usable(std::string_view path) const { return ::access(at(path).c_str(), R_OK | W_OK) == 0; }

}  // namespace moonpool::cli::doctor
