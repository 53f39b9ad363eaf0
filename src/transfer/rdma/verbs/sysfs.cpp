#include "transfer/rdma/verbs/sysfs.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace moonpool::transfer::rdma {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

std::vector<std::string> entries(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) names.push_back(at->path().filename());
  std::ranges::sort(names);
  return names;
}

std::string interface_with_guid(const fs::path& sys, std::uint64_t guid) {
  for (const std::string& interface : entries(sys / "class/net")) {
    if (const std::uint64_t own = eui64_of_mac(first_line(sys / "class/net" / interface / "address")); own != 0 && own == guid) {
      return interface;
    }
  }
  return {};
}

std::string interface_of(const fs::path& sys, const fs::path& device, std::uint32_t port, std::uint64_t guid, bool iwarp) {
  const std::string by_gid = first_line(device / "ports" / std::to_string(port) / "gid_attrs/ndevs/0");
  if (!by_gid.empty()) return by_gid;
  if (const std::string parent = first_line(device / "parent"); !parent.empty()) return parent;  // soft-RoCE
  const std::vector<std::string> own = entries(device / "device/net");
  for (const std::string& interface : own) {  // one for each port of the card
    if (first_line(device / "device/net" / interface / "dev_port") == std::to_string(port - 1)) return interface;
  }
  if (!own.empty()) return own.front();
  return iwarp ? interface_with_guid(sys, guid) : std::string();
}

}  // namespace

std::uint64_t eui64_of_mac(const std::string& mac) {
  std::array<unsigned, 6> bytes{};
  if (std::sscanf(mac.c_str(), "%2x:%2x:%2x:%2x:%2x:%2x", &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4], &bytes[5]) != 6) return 0;
  if (std::ranges::all_of(bytes, [](unsigned byte) { return byte == 0; })) return 0;
  const std::array<unsigned, 8> eui{bytes[0] ^ 2U, bytes[1], bytes[2], 0xff, 0xfe, bytes[3], bytes[4], bytes[5]};
  std::uint64_t value = 0;
  for (const unsigned byte : eui) value = value << 8 | byte;
  return value;
}

DeviceFacts device_facts(const std::string& name, std::uint32_t port, std::uint64_t guid, bool iwarp, const std::string& root) {
  const fs::path sys(root);
  const fs::path device = sys / "class/infiniband" / name;
  DeviceFacts facts;
  std::error_code error;
  facts.driver = fs::read_symlink(device / "device/driver", error).filename().string();
  const std::string bus = fs::read_symlink(device / "device/subsystem", error).filename().string();
  if (bus == "pci") facts.pci_address = fs::canonical(device / "device", error).filename().string();
  if (facts.driver.empty()) facts.driver = iwarp ? "siw" : "rdma_rxe";  // the only ones without a card under them
  try {
    facts.numa_node = std::stoi(first_line(device / "device/numa_node"));
  } catch (const std::exception&) {
    facts.numa_node = -1;
  }
  facts.interface = interface_of(sys, device, port, guid, iwarp);
  facts.rate = first_line(device / "ports" / std::to_string(port) / "rate");
  return facts;
}

std::string why_no_devices(const std::string& sys, const std::string& dev) {
  std::string names;
  for (const std::string& name : entries(fs::path(sys) / "class/infiniband")) names += (names.empty() ? "" : ", ") + name;
  constexpr const char* kTcp = ", or set \"protocol\": \"tcp\"";
  if (names.empty()) {
    return fmt::format(
        "this host has no RDMA device: no driver has made one (`rdma link`, `lspci | grep -i -E 'mellanox|infiniband|rdma'`); load the "
        "NIC's driver{}",
        kTcp);
  }
  if (entries(fs::path(dev) / "infiniband").empty()) {
    return fmt::format(
        "the host has RDMA devices ({}), but {}/infiniband is not there: load ib_uverbs, or give the container --device /dev/infiniband{}",
        names, dev, kTcp);
  }
  return fmt::format(
      "the kernel has RDMA devices ({}), but libibverbs finds no driver for them: install ibverbs-providers (RHEL: rdma-core){}", names,
      kTcp);
}

}  // namespace moonpool::transfer::rdma
