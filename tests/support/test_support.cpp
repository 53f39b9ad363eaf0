#include "tests/support/test_support.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace moonpool::test {

namespace {

// Below net.ipv4.ip_local_port_range (32768 and up on Linux) and above what is commonly configured.
constexpr std::uint16_t kFirstPort = 15000;
constexpr std::uint16_t kLastPort = 31999;

bool can_bind(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  const bool bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return bound;
}

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "moonpool-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::uint16_t free_port() {
  static thread_local std::mt19937 random{std::random_device{}()};
  std::uniform_int_distribution<int> candidates(kFirstPort, kLastPort);
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const auto port = static_cast<std::uint16_t>(candidates(random));
    if (can_bind(port)) return port;
  }
  throw std::runtime_error("no free TCP port found");
}

Result<std::string> find_program(const std::string& name, const std::string& package) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const auto candidate = std::filesystem::path(folder) / name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate.string();
  }
  return Status(ErrorCode::kConfig, "the program '" + name + "' is not in PATH: install " + package + " (apt-get install " + package + ")");
}

bool wait_until(const std::function<bool()>& condition, Deadline deadline) {
  auto pause = std::chrono::milliseconds(1);
  while (!condition()) {
    if (deadline.expired()) return false;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, deadline.left()));
    pause = std::min(pause * 2, std::chrono::milliseconds(10));
  }
  return true;
}

bool takes_less_than(std::chrono::nanoseconds bound, const std::function<std::chrono::nanoseconds()>& measure) {
  constexpr int kMeasurements = 3;
  const auto ms = [](std::chrono::nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); };
  for (int i = 1; i <= kMeasurements; ++i) {
    const auto taken = measure();
    if (taken < bound) return true;
    std::printf("measurement %d of at most %d: %.1f ms, less than %.1f ms is wanted\n", i, kMeasurements, ms(taken), ms(bound));
  }
  return false;
}

bool accepts_connections(const std::string& host, std::uint16_t port) {
  sockaddr_storage address{};
  socklen_t length = 0;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    length = sizeof(sockaddr_in);
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    length = sizeof(sockaddr_in6);
  } else {
    return false;
  }
  const int fd = ::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool accepted = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0;
  ::close(fd);
  return accepted;
}

}  // namespace moonpool::test
