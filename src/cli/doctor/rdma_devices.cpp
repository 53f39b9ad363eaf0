#include "cli/doctor/rdma_devices.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <iterator>

namespace moonpool::cli::doctor {

namespace {

// "4: ACTIVE" -> "ACTIVE".
std::string after_colon(const std::optional<std::string>& text) {
  if (!text) return {};
  const auto colon = text->find(": ");
  return colon == std::string::npos ? *text : text->substr(colon + 2);
}

// The kernel writes all eight groups; people read the short form. Empty for an unused entry.
std::string shortened(const std::string& text, PortGid& gid) {
  in6_addr address{};
  if (::inet_pton(AF_INET6, text.c_str(), &address) != 1) return {};
  if (IN6_IS_ADDR_UNSPECIFIED(&address)) return {};
  gid.ipv4 = IN6_IS_ADDR_V4MAPPED(&address);
  gid.link_local = IN6_IS_ADDR_LINKLOCAL(&address);
  // An entry without its own half of the bits is the port's prefix alone.
  if (std::all_of(address.s6_addr + 8, address.s6_addr + 16, [](std::uint8_t byte) { return byte == 0; })) return {};
  std::array<char, INET6_ADDRSTRLEN> buffer{};
  return ::inet_ntop(AF_INET6, &address, buffer.data(), buffer.size()) == nullptr ? std::string() : std::string(buffer.data());
}

std::vector<PortGid> read_gids(const HostFiles& host, const std::string& port) {
  std::vector<PortGid> gids;
  for (const std::string& name : host.names(port + "/gids")) {
    PortGid gid;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), gid.index);
    if (error != std::errc() || end != name.data() + name.size()) continue;
    gid.value = shortened(host.read(port + "/gids/" + name).value_or(""), gid);
    if (gid.value.empty()) continue;
    gid.kind = host.read(port + "/gid_attrs/types/" + name).value_or("");
    gid.interface = host.read(port + "/gid_attrs/ndevs/" + name).value_or("");
    gids.push_back(std::move(gid));
  }
  return gids;
}

std::string hex_digits(const std::string& text) {
  std::string digits;
  std::copy_if(text.begin(), text.end(), std::back_inserter(digits), [](unsigned char c) { return std::isxdigit(c) != 0; });
  return digits;
}

// Of "00:16:3e:01:02:03": the identifier of 64 bits that IPv6 makes of it, as 16 digits; empty when that is no MAC address.
std::string eui64_of(const std::string& mac) {
  const std::string digits = hex_digits(mac);
  unsigned first = 0;
  if (digits.size() != 12 || std::from_chars(digits.data(), digits.data() + 2, first, 16).ec != std::errc()) return {};
  return fmt::format("{:02x}{}fffe{}", first ^ 2U, digits.substr(2, 4), digits.substr(6));
}

// Where the device's bytes come from when it has no PCI function of its own: "netdev" of a soft device, or the GIDs' interface.
std::string interface_of(const HostFiles& host, const std::string& device, const std::vector<PortGid>& gids) {
  for (const PortGid& gid : gids) {
    if (!gid.interface.empty()) return gid.interface;
  }
  if (const auto parent = host.read(device + "/parent"); parent && !parent->empty()) return *parent;
  if (const auto interfaces = host.names(device + "/device/net"); !interfaces.empty()) return interfaces.front();
  // iWARP devices have functions of their own; their GUID is made of the interface's MAC address.
  const std::string guid = hex_digits(host.read(device + "/node_guid").value_or(""));
  for (const std::string& interface : host.names("/sys/class/net")) {
    if (!guid.empty() && guid == eui64_of(host.read("/sys/class/net/" + interface + "/address").value_or(""))) return interface;
  }
  return {};
}

bool is_pci_address(const std::string& text) {
  // dddd:bb:dd.f
  return text.size() >= 12 && text[4] == ':' && text[7] == ':' && text[10] == '.';
}

std::string uverbs_of(const HostFiles& host, const std::string& device) {
  for (const std::string& name : host.names("/sys/class/infiniband_verbs")) {
    if (host.read("/sys/class/infiniband_verbs/" + name + "/ibdev") == device) return "/dev/infiniband/" + name;
  }
  return {};
}

}  // namespace

std::vector<RdmaPort> read_rdma_ports(const HostFiles& host) {
  std::vector<RdmaPort> found;
  for (const std::string& device : host.names("/sys/class/infiniband")) {
    const std::string folder = "/sys/class/infiniband/" + device;
    RdmaPort common;
    common.device = device;
    common.iwarp = after_colon(host.read(folder + "/node_type")) == "RNIC";
    common.driver = host.link_name(folder + "/device/driver").value_or("");
    if (auto address = host.real_name(folder + "/device"); address && is_pci_address(*address)) common.pci_address = *address;
    common.numa_node = static_cast<std::int32_t>(host.read_number(folder + "/device/numa_node").value_or(-1));
    common.device_file = uverbs_of(host, device);
    common.usable = !common.device_file.empty() && host.usable(common.device_file);
    for (const std::string& number : host.names(folder + "/ports")) {
      const std::string at = folder + "/ports/" + number;
      RdmaPort port = common;
      if (std::from_chars(number.data(), number.data() + number.size(), port.port).ec != std::errc()) continue;
      port.state = after_colon(host.read(at + "/state"));
      port.active = port.state == "ACTIVE";
      port.physical = after_colon(host.read(at + "/phys_state"));
      port.rate = host.read(at + "/rate").value_or("");
      port.link_layer = host.read(at + "/link_layer").value_or("");
      port.gids = read_gids(host, at);
      port.interface = interface_of(host, folder, port.gids);
      if (!port.interface.empty()) port.interface_mtu = host.read_number("/sys/class/net/" + port.interface + "/mtu");
      found.push_back(std::move(port));
    }
  }
  return found;
}

std::uint32_t roce_mtu(std::int64_t interface_mtu) {
  // What the kernel's RDMA core takes off for headers: GRH or IP, UDP, BTH, the largest extension, ICRC.
  constexpr std::int64_t kHeaders = 40 + 8 + 12 + 4 + 28 + 4;
  std::uint32_t best = 0;
  for (std::uint32_t size = 256; size <= 4096; size *= 2) {
    if (interface_mtu - kHeaders >= size) best = size;
  }
  return best;
}

std::vector<PciDevice> read_pci_devices(const HostFiles& host) {
  std::vector<PciDevice> found;
  for (const std::string& address : host.names("/sys/bus/pci/devices")) {
    const std::string folder = "/sys/bus/pci/devices/" + address;
    PciDevice device;
    device.address = address;
    device.pci_class = static_cast<std::uint32_t>(host.read_number(folder + "/class").value_or(0));
    device.vendor = static_cast<std::uint32_t>(host.read_number(folder + "/vendor").value_or(0));
    device.device = static_cast<std::uint32_t>(host.read_number(folder + "/device").value_or(0));
    device.numa_node = static_cast<std::int32_t>(host.read_number(folder + "/numa_node").value_or(-1));
    device.driver = host.link_name(folder + "/driver").value_or("");
    found.push_back(std::move(device));
  }
  return found;
}

}  // namespace moonpool::cli::doctor
