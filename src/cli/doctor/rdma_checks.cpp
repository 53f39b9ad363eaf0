#include "cli/doctor/rdma_checks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

namespace moonpool::cli::doctor {

namespace {

std::string node_text(std::int32_t node) { return node < 0 ? "no NUMA node" : fmt::format("NUMA node {}", node); }

bool has_roce_v2(const RdmaPort& port) {
  return std::any_of(port.gids.begin(), port.gids.end(), [](const PortGid& gid) { return gid.roce_v2() && !gid.link_local; });
}

std::string gids_text(const RdmaPort& port) {
  std::vector<std::string> texts;
  std::size_t other = 0;
  for (const PortGid& gid : port.gids) {
    // Of a RoCE port the v1 entries say nothing that their v2 twins do not.
    if (port.ethernet() && !port.iwarp && (!gid.roce_v2() || gid.link_local)) {
      ++other;
    } else {
      texts.push_back(fmt::format("{} {}", gid.index, gid.value));
    }
  }
  if (texts.empty()) return fmt::format("{} GIDs, none of RoCE v2 with an IP address", other);
  return fmt::format("GID {}{}", fmt::join(texts, ", "), other > 0 ? fmt::format(" (and {} link-local or v1)", other) : "");
}

// All that is known of it, for one line.
std::string describe(const RdmaPort& port) {
  std::string text = fmt::format("{}: {}", port.name(), port.state.empty() ? "state unknown" : port.state);
  if (!port.physical.empty() && port.physical != "LinkUp") text += " (" + port.physical + ")";
  if (!port.rate.empty()) text += ", " + port.rate;
  text += ", " + (port.iwarp ? std::string("iWARP") : port.ethernet() ? std::string("RoCE") : port.link_layer);
  if (!port.interface.empty()) {
    text += " on " + port.interface;
    if (port.interface_mtu) text += fmt::format(" (MTU {})", *port.interface_mtu);
  }
  if (!port.driver.empty()) text += ", driver " + port.driver;
  text += port.pci_address.empty() ? ", virtual" : fmt::format(", PCIe {}", port.pci_address);
  return text + fmt::format(", {}, {}", node_text(port.numa_node), gids_text(port));
}

Findings check_port(const RdmaPort& port, Level grave) {
  const auto grave_finding = [&](std::string what, std::string remedy) { return Findings{{grave, std::move(what), std::move(remedy)}}; };
  if (!port.active) {
    return grave_finding(describe(port),
                         port.interface.empty()
                             ? "check the cable and, for InfiniBand, that a subnet manager runs (sminfo)"
                             : fmt::format("ip link set {} up; then check the cable and the switch's port", port.interface));
  }
  if (port.device_file.empty()) {
    return grave_finding(describe(port) + "; user programs cannot reach it: there is no uverbs device",
                         "modprobe ib_uverbs (Debian: apt-get install rdma-core)");
  }
  if (!port.usable) {
    return grave_finding(
        describe(port) + fmt::format("; {} cannot be opened", port.device_file),
        "in a container pass the folder in (docker run --device=/dev/infiniband, or the RDMA device plugin in Kubernetes); "
        "on a host give this user read and write access");
  }
  Findings found{ok(describe(port))};
  if (!port.ethernet() || port.iwarp) return found;
  if (!has_roce_v2(port)) {
    found = grave_finding(describe(port), fmt::format("give the interface {} an IP address; without one RoCE v2 cannot be routed",
                                                      port.interface.empty() ? "of this port" : port.interface));
  } else if (port.interface_mtu && roce_mtu(*port.interface_mtu) < 4096) {
    found.push_back(note(fmt::format("{}: an interface MTU of {} gives RDMA packets of {} bytes", port.name(), *port.interface_mtu,
                                     roce_mtu(*port.interface_mtu)),
                         "where switches and peers allow it, an MTU of 4200 or more gives 4096 (ip link set " +
                             (port.interface.empty() ? std::string("INTERFACE") : port.interface) + " mtu 4200)"));
  }
  return found;
}

struct KnownNic {
  std::uint32_t vendor;
  std::uint32_t device;  // 0: any
  std::string_view name;
  std::string_view module;
};
constexpr std::array kKnownNics = {KnownNic{0x15b3, 0, "NVIDIA (Mellanox)", "mlx5_ib"}, KnownNic{0x1ded, 0x107f, "Alibaba eRDMA", "erdma"}};

// Cards that could do RDMA, where no driver for that has made a device of them.
Findings idle_cards(std::span<const RdmaPort> ports, std::span<const PciDevice> pci, Level grave) {
  Findings found;
  for (const PciDevice& card : pci) {
    if (!card.network()) continue;
    const auto known = std::find_if(kKnownNics.begin(), kKnownNics.end(), [&](const KnownNic& one) {
      return one.vendor == card.vendor && (one.device == 0 || one.device == card.device);
    });
    const bool used = std::any_of(ports.begin(), ports.end(), [&](const RdmaPort& port) { return port.pci_address == card.address; });
    if (known == kKnownNics.end() || used) continue;
    found.push_back({grave,
                     fmt::format("the {} card at PCIe {} can do RDMA, but no RDMA device was made of it{}", known->name, card.address,
                                 card.driver.empty() ? " (no driver)" : ""),
                     fmt::format("modprobe {}; `rdma link` lists it then", known->module)});
  }
  return found;
}

}  // namespace

Findings check_rdma_ports(std::span<const RdmaPort> ports, std::span<const PciDevice> pci, const RdmaWish& wish) {
  const Level grave = wish.wanted ? Level::kError : Level::kNote;
  Findings found = idle_cards(ports, pci, wish.wanted ? Level::kWarning : Level::kNote);
  std::set<std::string> names;
  for (const RdmaPort& port : ports) names.insert(port.device);
  if (names.empty()) {
    if (!wish.wanted) {
      found.push_back(note("no RDMA device: data between hosts goes over TCP, and within a host through shared memory"));
    } else {
      found.push_back(error("no RDMA device, and the configuration has \"protocol\": \"rdma\"",
                            "load the card's driver (docs/rdma.md lists them; `rdma link` shows devices), or set \"protocol\": \"tcp\""));
    }
    return found;
  }
  for (const std::string& name : wish.devices) {
    if (names.contains(name)) continue;
    found.push_back({grave, fmt::format("device_name has {}, and there is no such device", name),
                     fmt::format("name some of {}, or leave device_name empty to use all that are up", fmt::join(names, ", "))});
  }
  bool any_up = false;
  for (const RdmaPort& port : ports) {
    const bool named = std::find(wish.devices.begin(), wish.devices.end(), port.device) != wish.devices.end();
    if (!wish.devices.empty() && !named) {
      found.push_back(note(describe(port) + "; not in device_name, so not used"));
      continue;
    }
    // Of those that nobody named, one that is down is merely not used.
    const Level level = named ? grave : std::min(grave, Level::kWarning);
    Findings of_port = check_port(port, level);
    any_up = any_up || of_port.front().level == Level::kOk;
    std::move(of_port.begin(), of_port.end(), std::back_inserter(found));
  }
  if (wish.wanted && !any_up) {
    found.push_back(error("no RDMA port can be used as it is, and the configuration has \"protocol\": \"rdma\"",
                          "mend one of the ports above, or set \"protocol\": \"tcp\""));
  }
  return found;
}

Findings check_gpus(std::span<const PciDevice> pci, std::span<const RdmaPort> ports) {
  constexpr std::uint32_t kNvidia = 0x10de;
  constexpr std::uint32_t kAmd = 0x1002;
  constexpr std::uint32_t kThreeD = 0x0302;
  constexpr std::uint32_t kAccelerator = 0x0380;
  Findings found;
  for (const PciDevice& device : pci) {
    // A server's own VGA output is no GPU to compute on.
    if (!device.display()) continue;
    const std::uint32_t kind = device.pci_class >> 8;
    if (device.vendor != kNvidia && device.vendor != kAmd && kind != kThreeD && kind != kAccelerator) continue;
    const std::string_view vendor = device.vendor == kNvidia ? "NVIDIA" : device.vendor == kAmd ? "AMD" : "other";
    std::vector<std::string> near;
    for (const RdmaPort& port : ports) {
      if (port.active && device.numa_node >= 0 && port.numa_node == device.numa_node) near.push_back(port.device);
    }
    std::string text = fmt::format("{} GPU at PCIe {}, {}{}", vendor, device.address, node_text(device.numa_node),
                                   device.driver.empty() ? ", no driver" : ", driver " + device.driver);
    if (!near.empty()) text += fmt::format(", near {}", fmt::join(near, ", "));
    const bool far = near.empty() && device.numa_node >= 0 &&
                     std::any_of(ports.begin(), ports.end(), [](const RdmaPort& port) { return port.active && port.numa_node >= 0; });
    found.push_back(far ? note(text + ", with no active RDMA port on its NUMA node",
                               "its blocks cross the sockets' link on their way to a NIC; where there is a choice of slots, put one near")
                        : ok(std::move(text)));
  }
  if (found.empty()) found.push_back(note("no GPU"));
  return found;
}

}  // namespace moonpool::cli::doctor
