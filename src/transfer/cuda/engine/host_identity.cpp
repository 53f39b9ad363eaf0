#include "transfer/cuda/engine/host_identity.h"

#include <unistd.h>

#include <array>
#include <fstream>

#include "base/ids.h"

namespace moonpool::transfer::cuda {

namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string link_of(const char* path) {
  std::array<char, 64> text{};
  const ssize_t length = ::readlink(path, text.data(), text.size());
  return length <= 0 ? std::string() : std::string(text.data(), static_cast<std::size_t>(length));
}

std::string read_identity() {
  const std::string boot = first_line("/proc/sys/kernel/random/boot_id");
  const std::string ipc = link_of("/proc/self/ns/ipc");
  const std::string processes = link_of("/proc/self/ns/pid");
  if (boot.empty() || ipc.empty() || processes.empty()) return {};
  return boot + " " + ipc + " " + processes + " uid:" + std::to_string(::getuid());
}

}  // namespace

const std::string& host_identity() {
  static const std::string kIdentity = read_identity();
  return kIdentity;
}

std::string process_identity(const void* runtime) {
  static const std::string kProcess = NodeId::generate().to_string() + " ";
  return kProcess + std::to_string(reinterpret_cast<std::uintptr_t>(runtime));
}

}  // namespace moonpool::transfer::cuda
