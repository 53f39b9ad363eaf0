// A host in a temporary folder: the files of /sys, /proc and /dev that a test says it has.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cli/doctor/host_files.h"
#include "tests/support/test_support.h"

namespace moonpool::cli::doctor {

struct MadeUpPort {
  std::string device;
  std::string state = "4: ACTIVE";
  std::string link_layer = "Ethernet";
  std::string node_type = "1: CA";
  std::string driver = "mlx5_core";
  std::string pci_address = "0000:3b:00.0";
  std::string numa_node = "0";
  std::string interface = "eth0";
  std::string interface_mtu = "4200";
  // As the kernel writes them.
  std::vector<std::string> gids = {"fe80:0000:0000:0000:0e42:a1ff:fe00:0001", "0000:0000:0000:0000:0000:ffff:0a00:0001"};
  bool device_file = true;
};

class MadeUpHost {
 public:
  [[nodiscard]] HostFiles files() const { return HostFiles(folder_.path()); }
  [[nodiscard]] std::string path(const std::string& file) const { return (folder_.path() / file).string(); }

  void write(const std::string& file, const std::string& text) const {
    const auto path = folder_.path() / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << '\n';
  }
  void link(const std::string& file, const std::string& target) const {
    const auto path = folder_.path() / file;
    std::filesystem::create_directories(path.parent_path());
    std::filesystem::create_symlink(target, path);
  }

  // A PCI function as /sys/bus/pci shows it; `driver` may be empty.
  void add_pci(const std::string& address, const std::string& pci_class, const std::string& vendor, const std::string& device,
               const std::string& numa_node, const std::string& driver) const {
    const std::string at = "sys/bus/pci/devices/" + address + "/";
    write(at + "class", pci_class);
    write(at + "vendor", vendor);
    write(at + "device", device);
    write(at + "numa_node", numa_node);
    if (!driver.empty()) link(at + "driver", "../../../bus/pci/drivers/" + driver);
  }

  void add_port(const MadeUpPort& port) const {
    const std::string at = "sys/class/infiniband/" + port.device + "/";
    write(at + "node_type", port.node_type);
    write(at + "ports/1/state", port.state);
    write(at + "ports/1/phys_state", port.state == "4: ACTIVE" ? "5: LinkUp" : "3: Disabled");
    write(at + "ports/1/rate", "100 Gb/sec (4X EDR)");
    write(at + "ports/1/link_layer", port.link_layer);
    for (std::size_t i = 0; i < port.gids.size(); ++i) {
      // A RoCE port has each of its addresses twice, as v1 and v2.
      for (const std::size_t index : {2 * i, 2 * i + 1}) {
        const std::string number = std::to_string(index);
        write(at + "ports/1/gids/" + number, port.gids[i]);
        write(at + "ports/1/gid_attrs/types/" + number, index % 2 == 0 ? "IB/RoCE v1" : "RoCE v2");
        write(at + "ports/1/gid_attrs/ndevs/" + number, port.interface);
      }
    }
    write(at + "ports/1/gids/99", "fe80:0000:0000:0000:0000:0000:0000:0000");
    if (!port.pci_address.empty()) {
      add_pci(port.pci_address, "0x020000", "0x15b3", "0x101d", port.numa_node, port.driver);
      link("sys/class/infiniband/" + port.device + "/device", "../../../bus/pci/devices/" + port.pci_address);
    }
    if (!port.interface.empty()) write("sys/class/net/" + port.interface + "/mtu", port.interface_mtu);
    const std::string uverbs = "uverbs" + std::to_string(devices_++);
    write("sys/class/infiniband_verbs/" + uverbs + "/ibdev", port.device);
    if (port.device_file) write("dev/infiniband/" + uverbs, "");
  }

 private:
  test::TempDir folder_;
  mutable int devices_ = 0;
};

}  // namespace moonpool::cli::doctor
