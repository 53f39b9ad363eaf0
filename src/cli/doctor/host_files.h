// The files in which the kernel describes the host (/sys, /proc, /dev), under a root folder, so that tests can make one up.
//
// Whatever cannot be read is absent: such files come and go with devices, and some refuse their reader. Cost: a system call or three a
// file. Threads: any; immutable.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moonpool::cli::doctor {

class HostFiles {
 public:
  explicit HostFiles(std::filesystem::path root = "/") : root_(std::move(root)) {}

  // At most 1 MiB of it, without blanks at its ends.
  [[nodiscard]] std::optional<std::string> read(std::string_view path) const;
  [[nodiscard]] std::optional<std::int64_t> read_number(std::string_view path) const;  // decimal, or with 0x
  // The names in a folder, sorted, numbers by value; empty when there is none.
  [[nodiscard]] std::vector<std::string> names(std::string_view path) const;
  // The last part of what a symbolic link points to: the driver, say, that "device/driver" is.
  [[nodiscard]] std::optional<std::string> link_name(std::string_view path) const;
  // The last part of the path with all links followed: the PCI address of "/sys/class/infiniband/mlx5_0/device".
  [[nodiscard]] std::optional<std::string> real_name(std::string_view path) const;
  [[nodiscard]] bool exists(std::string_view path) const;
  // Whether this process may open it for reading and writing.
  [[nodiscard]] bool usable(std::string_view path) const;

  [[nodiscard]] std::filesystem::path at(std::string_view path) const;

 private:
  std::filesystem::path root_;
};

}  // namespace moonpool::cli::doctor
