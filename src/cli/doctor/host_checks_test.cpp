// The checks that look at the host, over hosts that are made up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/doctor/findings_for_test.h"
#include "cli/doctor/made_up_host_for_test.h"
#include "cli/doctor/memory_checks.h"
#include "cli/doctor/name_checks.h"
#include "cli/doctor/port_checks.h"
#include "cli/doctor/rdma_checks.h"

namespace moonpool::cli::doctor {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

Findings rdma(const MadeUpHost& host, const RdmaWish& wish) {
  return check_rdma_ports(read_rdma_ports(host.files()), read_pci_devices(host.files()), wish);
}

// ------------------------------------------------------------------------------------------------ RDMA

TEST(RdmaPorts, AreReadWithAllThatSysfsTellsOfThem) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_1", .pci_address = "0000:5e:00.0", .numa_node = "1", .interface = "eth1"});
  host.add_port({.device = "mlx5_0"});
  const auto ports = read_rdma_ports(host.files());
  ASSERT_THAT(ports, SizeIs(2));
  const RdmaPort& port = ports[1];
  EXPECT_EQ(ports[0].device, "mlx5_0");
  EXPECT_EQ(port.device, "mlx5_1");
  EXPECT_EQ(port.port, 1U);
  EXPECT_TRUE(port.active);
  EXPECT_EQ(port.state, "ACTIVE");
  EXPECT_EQ(port.physical, "LinkUp");
  EXPECT_EQ(port.rate, "100 Gb/sec (4X EDR)");
  EXPECT_EQ(port.driver, "mlx5_core");
  EXPECT_EQ(port.pci_address, "0000:5e:00.0");
  EXPECT_EQ(port.numa_node, 1);
  EXPECT_EQ(port.interface, "eth1");
  EXPECT_EQ(port.interface_mtu, 4200);
  EXPECT_EQ(port.device_file, "/dev/infiniband/uverbs0");
  EXPECT_TRUE(port.usable);
  ASSERT_THAT(port.gids, SizeIs(4)) << "the unused entry of the table is left out";
  EXPECT_EQ(port.gids[3].value, "::ffff:10.0.0.1");
  EXPECT_EQ(port.gids[3].index, 3U);
  EXPECT_TRUE(port.gids[3].roce_v2());
  EXPECT_TRUE(port.gids[3].ipv4);
  EXPECT_TRUE(port.gids[0].link_local);
}

TEST(RdmaPorts, AWellOneIsOneLineWithItsUsableGid) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0"});
  const Findings found = rdma(host, {true, {"mlx5_0"}});
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0], finds(Level::kOk,
                              "mlx5_0 port 1: ACTIVE, 100 Gb/sec (4X EDR), RoCE on eth0 (MTU 4200), driver mlx5_core, PCIe "
                              "0000:3b:00.0, NUMA node 0, GID 3 ::ffff:10.0.0.1 (and 3 link-local or v1)"));
}

TEST(RdmaPorts, AWrongNameListsThoseThatExist) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0"});
  EXPECT_THAT(rdma(host, {true, {"erdma_0"}}), Contains(advises(Level::kError, "device_name has erdma_0", "mlx5_0")));
}

TEST(RdmaPorts, NamedAndDownIsAnErrorButOneOfManyThatIsDownIsAWarning) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0"});
  host.add_port({.device = "mlx5_1", .state = "1: DOWN", .pci_address = "0000:5e:00.0", .interface = "eth1"});
  EXPECT_THAT(rdma(host, {true, {"mlx5_0", "mlx5_1"}}),
              Contains(advises(Level::kError, "mlx5_1 port 1: DOWN (Disabled)", "ip link set eth1 up")));
  const Findings all = rdma(host, {true, {}});
  EXPECT_THAT(all, Contains(finds(Level::kWarning, "mlx5_1 port 1: DOWN")));
  EXPECT_THAT(all, Not(Contains(Field(&Finding::level, Level::kError))));
}

TEST(RdmaPorts, NoneThatWorksIsAnErrorWhenRdmaIsWanted) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .state = "1: DOWN"});
  EXPECT_THAT(rdma(host, {true, {}}), Contains(advises(Level::kError, "no RDMA port can be used", "\"protocol\": \"tcp\"")));
  EXPECT_THAT(rdma(host, {false, {}}), Not(Contains(Field(&Finding::level, Level::kError))));
}

TEST(RdmaPorts, AHostWithoutDevicesIsANoteUnlessRdmaIsWanted) {
  MadeUpHost host;
  EXPECT_THAT(rdma(host, {false, {}}), ElementsAre(finds(Level::kNote, "no RDMA device")));
  EXPECT_THAT(rdma(host, {true, {}}), ElementsAre(advises(Level::kError, "no RDMA device", "\"protocol\": \"tcp\"")));
}

TEST(RdmaPorts, ACardWithoutItsDriverNamesTheModule) {
  MadeUpHost host;
  host.add_pci("0000:00:06.0", "0x020000", "0x1ded", "0x107f", "-1", "");
  host.add_pci("0000:3b:00.0", "0x020700", "0x15b3", "0x101b", "0", "mlx5_core");
  host.add_pci("0000:00:05.0", "0x020000", "0x8086", "0x1533", "-1", "igb");
  const Findings found = rdma(host, {true, {}});
  EXPECT_THAT(found, Contains(advises(Level::kWarning, "Alibaba eRDMA card at PCIe 0000:00:06.0", "modprobe erdma")));
  EXPECT_THAT(found, Contains(advises(Level::kWarning, "card at PCIe 0000:3b:00.0", "modprobe mlx5_ib")));
  EXPECT_THAT(found, SizeIs(3));
}

TEST(RdmaPorts, ADeviceThatTheContainerLacksNamesTheFolder) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .device_file = false});
  EXPECT_THAT(rdma(host, {true, {"mlx5_0"}}),
              Contains(advises(Level::kError, "/dev/infiniband/uverbs0 cannot be opened", "--device=/dev/infiniband")));
}

TEST(RdmaPorts, RoceWithoutAnAddressOfTheInterfaceCannotBeRouted) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .gids = {"fe80:0000:0000:0000:0e42:a1ff:fe00:0001"}});
  EXPECT_THAT(rdma(host, {true, {"mlx5_0"}}),
              Contains(advises(Level::kError, "none of RoCE v2 with an IP address", "give the interface eth0")));
}

TEST(RdmaPorts, ASmallMtuIsANoteWithThePacketsItGives) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .interface_mtu = "1500"});
  EXPECT_THAT(rdma(host, {true, {}}), Contains(advises(Level::kNote, "MTU of 1500 gives RDMA packets of 1024 bytes", "mtu 4200")));
}

TEST(RdmaPorts, InfiniBandAndIwarpNeedNoRoceAddress) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .link_layer = "InfiniBand", .interface = "", .gids = {"fe80:0000:0000:0000:0e42:a1ff:fe00:0001"}});
  host.add_port({.device = "erdma_0",
                 .node_type = "4: RNIC",
                 .driver = "erdma",
                 .pci_address = "0000:00:06.0",
                 .interface = "eth1",
                 .interface_mtu = "1500",
                 .gids = {"0016:3e00:0001:0000:0000:0000:0000:0001"}});
  const Findings found = rdma(host, {true, {"mlx5_0", "erdma_0"}});
  EXPECT_THAT(found, Contains(finds(Level::kOk, "InfiniBand, driver")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "iWARP on eth1 (MTU 1500), driver erdma")));
  EXPECT_THAT(found, SizeIs(2));
}

TEST(RdmaPorts, AnIwarpDevicesInterfaceIsFoundByItsMacAddress) {
  MadeUpHost host;
  host.add_port(
      {.device = "erdma_0", .node_type = "4: RNIC", .driver = "erdma", .pci_address = "0000:00:06.0", .interface = "", .gids = {}});
  host.write("sys/class/infiniband/erdma_0/node_guid", "0216:3eff:fe01:0203");
  host.write("sys/class/net/eth0/address", "00:16:3e:01:02:04");
  host.write("sys/class/net/eth1/address", "00:16:3e:01:02:03");
  host.write("sys/class/net/eth1/mtu", "1500");
  const auto ports = read_rdma_ports(host.files());
  ASSERT_THAT(ports, SizeIs(1));
  EXPECT_EQ(ports[0].interface, "eth1");
  EXPECT_EQ(ports[0].interface_mtu, 1500);
}

TEST(RdmaPorts, PacketSizesFollowTheInterfacesMtu) {
  EXPECT_EQ(roce_mtu(9000), 4096U);
  EXPECT_EQ(roce_mtu(4192), 4096U);
  EXPECT_EQ(roce_mtu(4191), 2048U);
  EXPECT_EQ(roce_mtu(1500), 1024U);
  EXPECT_EQ(roce_mtu(300), 0U);
}

TEST(Gpus, AreListedWithTheNicsNearThem) {
  MadeUpHost host;
  host.add_port({.device = "mlx5_0", .numa_node = "0"});
  host.add_pci("0000:17:00.0", "0x030200", "0x10de", "0x2330", "0", "nvidia");
  host.add_pci("0000:98:00.0", "0x030200", "0x10de", "0x2330", "1", "nvidia");
  host.add_pci("0000:03:00.0", "0x030000", "0x1a03", "0x2000", "0", "ast");
  const Findings found = check_gpus(read_pci_devices(host.files()), read_rdma_ports(host.files()));
  EXPECT_THAT(found,
              ElementsAre(finds(Level::kOk, "NVIDIA GPU at PCIe 0000:17:00.0, NUMA node 0, driver nvidia, near mlx5_0"),
                          finds(Level::kNote, "0000:98:00.0, NUMA node 1, driver nvidia, with no active RDMA port on its NUMA node")));
  EXPECT_THAT(check_gpus({}, {}), ElementsAre(finds(Level::kNote, "no GPU")));
}

// ------------------------------------------------------------------------------------------------ limits and memory

TEST(MemoryLock, IsComparedWithWhatWillBeRegistered) {
  EXPECT_THAT(check_memory_lock({8 << 20, 8 << 20, false}, 5 * kGiB),
              ElementsAre(advises(Level::kError, "soft 8.00 MiB, hard 8.00 MiB, and the configuration registers 5.00 GiB",
                                  "LimitMEMLOCK=infinity")));
  EXPECT_THAT(check_memory_lock({6 * kGiB, kNoLimit, false}, 5 * kGiB), ElementsAre(finds(Level::kOk, "5.00 GiB will be registered")));
  EXPECT_THAT(check_memory_lock({8 << 20, 8 << 20, false}, 0), ElementsAre(finds(Level::kNote, "soft 8.00 MiB")));
  EXPECT_THAT(check_memory_lock({kNoLimit, kNoLimit, false}, 5 * kGiB), ElementsAre(finds(Level::kOk, "soft unlimited")));
  EXPECT_THAT(check_memory_lock({0, 0, true}, 5 * kGiB), ElementsAre(finds(Level::kOk, "exempt (CAP_IPC_LOCK)")));
}

TEST(MemoryLock, TheCapabilityCountsInTheFirstUserNamespaceOnly) {
  MadeUpHost host;
  host.write("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff");
  host.write("proc/self/uid_map", "         0          0 4294967295");
  EXPECT_TRUE(read_memory_lock(host.files()).exempt);
  host.write("proc/self/uid_map", "         0     100000      65536");
  EXPECT_FALSE(read_memory_lock(host.files()).exempt);
  host.write("proc/self/uid_map", "         0          0 4294967295");
  host.write("proc/self/status", "CapEff:\t00000000a80425fb");
  EXPECT_FALSE(read_memory_lock(host.files()).exempt);
}

TEST(HugePagesCheck, CountsWhatIsFreeAndSaysHowManyAreMissing) {
  MadeUpHost host;
  host.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024");
  host.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512");
  host.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0");
  host.write("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0");
  host.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
  const HugePages pages = read_huge_pages(host.files());
  EXPECT_EQ(pages.transparent, "madvise");
  EXPECT_EQ(pages.pools.at(2 << 20).free, 512U);
  const Findings enough = check_huge_pages(pages, kGiB);
  EXPECT_THAT(enough, Contains(finds(Level::kOk, "2.00 MiB pages: 1024 reserved, 512 free (1.00 GiB)")));
  EXPECT_THAT(enough, Not(Contains(Field(&Finding::level, Level::kNote))));
  // 512 pages are in use, and a segment of 3 GiB takes 1536 more.
  EXPECT_THAT(check_huge_pages(pages, 3 * kGiB),
              Contains(advises(Level::kNote, "1.00 GiB of huge pages are free", "vm.nr_hugepages=2048")));
  EXPECT_THAT(check_huge_pages({}, 0), Contains(finds(Level::kOk, "none reserved")));
}

TEST(Numa, NodesAreListedAndASegmentThatDoesNotFitIsAnError) {
  MadeUpHost host;
  for (const std::string node : {"0", "10", "2"}) {
    host.write("sys/devices/system/node/node" + node + "/cpulist", "0-15");
    host.write("sys/devices/system/node/node" + node + "/meminfo",
               "Node " + node + " MemTotal:       1048576 kB\nNode " + node + " MemFree:         524288 kB");
  }
  host.write("sys/devices/system/node/online", "0,2,10");
  const auto nodes = read_numa_nodes(host.files());
  ASSERT_THAT(nodes, SizeIs(3));
  EXPECT_EQ(nodes[1].number, 2);
  EXPECT_EQ(nodes[2].memory, kGiB);
  EXPECT_THAT(check_numa(nodes, kGiB), Contains(finds(Level::kOk, "node 10: CPUs 0-15, 1.00 GiB, 512.00 MiB free")));
  EXPECT_THAT(check_numa(nodes, 4 * kGiB), Contains(advises(Level::kError, "segment of 4.00 GiB", "global_segment_size")));
}

TEST(SharedMemoryCheck, ASmallDevShmIsWorthANoteAndAMissingMemfdAWarning) {
  EXPECT_THAT(check_shared_memory({64 << 20, 64 << 20, ""}), Contains(advises(Level::kNote, "/dev/shm has 64.00 MiB", "--shm-size")));
  EXPECT_THAT(check_shared_memory({kGiB, kGiB, "Operation not permitted"}),
              Contains(advises(Level::kWarning, "memfd_create failed (Operation not permitted)", "seccomp")));
  EXPECT_THAT(check_shared_memory({std::nullopt, 0, ""}), Contains(finds(Level::kNote, "there is no /dev/shm")));
}

TEST(FileLimitCheck, FewFilesAreAWarning) {
  EXPECT_THAT(check_file_limit({256, 4096}), ElementsAre(advises(Level::kWarning, "soft 256, hard 4096", "ulimit -n")));
  EXPECT_THAT(check_file_limit({1024, 4096}), ElementsAre(finds(Level::kNote, "soft 1024")));
  EXPECT_THAT(check_file_limit({65536, kNoLimit}), ElementsAre(finds(Level::kOk, "hard unlimited")));
}

// ------------------------------------------------------------------------------------------------ ports

constexpr PortRange kRange{12300, 14300};
constexpr PortRange kUsualOutgoing{32768, 60999};

TEST(Ports, ListenersAreReadWithTheirProcesses) {
  MadeUpHost host;
  host.write("proc/net/tcp",
             "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
             "   0: 0100007F:3034 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
             "   1: 0100007F:3035 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0");
  host.write("proc/net/tcp6",
             "  sl  local_address                         remote_address                        st tx_queue rx_queue\n"
             "   0: 00000000000000000000000000000000:C383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 "
             "0 0 4713 1");
  host.write("proc/77/comm", "mooncake_master");
  host.link("proc/77/fd/5", "socket:[4711]");
  const auto listeners = read_listeners(host.files());
  ASSERT_THAT(listeners, SizeIs(2)) << "connections are no listeners";
  EXPECT_EQ(listeners[0].address, "127.0.0.1");
  EXPECT_EQ(listeners[0].port, 12340);
  EXPECT_EQ(listeners[0].process, "mooncake_master (pid 77)");
  EXPECT_EQ(listeners[1].address, "::");
  EXPECT_EQ(listeners[1].port, 50051);
  EXPECT_EQ(listeners[1].process, "");
}

TEST(Ports, AListenerOfThisVeryProcessIsFoundOnTheRealHost) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(socket, 1), 0);
  ASSERT_EQ(::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::uint16_t port = ntohs(address.sin_port);
  const auto listeners = read_listeners(HostFiles());
  EXPECT_THAT(check_ports(listeners, {{"--port", port, "", false, ""}}, kRange, kUsualOutgoing),
              Contains(advises(Level::kError, "(pid " + std::to_string(::getpid()) + ") on 127.0.0.1", "another port")));
  ::close(socket);
  EXPECT_THAT(check_ports(read_listeners(HostFiles()), {{"--port", port, "", false, ""}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kOk, std::to_string(port) + " (--port): free")));
}

TEST(Ports, OnlyAListenerOnTheSameAddressIsInTheWay) {
  const std::vector<Listener> listeners = {{"127.0.0.1", 12345, 1, "python3 (pid 5)"}, {"0.0.0.0", 12346, 2, ""}};
  EXPECT_THAT(check_ports(listeners, {{"local_hostname", 12345, "10.0.0.1", false, ""}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kOk, "free")));
  EXPECT_THAT(check_ports(listeners, {{"local_hostname", 12346, "10.0.0.1", false, ""}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kError, "taken by a process that this user may not look at on 0.0.0.0")));
  EXPECT_THAT(check_ports(listeners, {{"local_hostname", 12345, "127.0.0.1", false, "moonpool 1.2.3"}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kOk, "python3 (pid 5) on 127.0.0.1 listens, moonpool 1.2.3")));
}

TEST(Ports, AMasterOfThisHostShouldListen) {
  const std::vector<Listener> listeners = {{"127.0.0.1", 50001, 1, "mooncake_master (pid 9)"}};
  EXPECT_THAT(check_ports(listeners, {{"master", 50001, "127.0.0.1", true, ""}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kOk, "mooncake_master (pid 9)")));
  EXPECT_THAT(check_ports(listeners, {{"master", 50051, "127.0.0.1", true, ""}}, kRange, kUsualOutgoing),
              Contains(finds(Level::kWarning, "nobody on this host listens")));
}

TEST(Ports, TheRangeOfNodesIsCounted) {
  std::vector<Listener> listeners = {{"127.0.0.1", 12300, 1, ""}, {"::1", 12300, 2, ""}};
  EXPECT_THAT(check_ports(listeners, {}, kRange, kUsualOutgoing), ElementsAre(finds(Level::kOk, "2000 of 2001 free")));
  EXPECT_THAT(check_ports(listeners, {}, {12300, 12300}, kUsualOutgoing), ElementsAre(finds(Level::kError, "0 of 1 free")));
  EXPECT_THAT(check_ports({}, {}, kRange, {10000, 60999}), Contains(advises(Level::kNote, "10000-60999", "ip_local_port_range")));
}

// ------------------------------------------------------------------------------------------------ names

TEST(Names, ALocalHostnameThatMeansTheLoopbackIsAnErrorForAPoolOfSeveralHosts) {
  const Result<Resolved> trap = Resolved{{"127.0.1.1"}};
  EXPECT_THAT(judge_local_hostname("node7", trap, {}, true),
              ElementsAre(advises(Level::kError, "local_hostname node7 is 127.0.1.1", "/etc/hosts")));
  EXPECT_THAT(judge_local_hostname("node7", trap, {}, false), ElementsAre(finds(Level::kOk, "this host alone")));
  EXPECT_THAT(judge_local_hostname("node7", Resolved{{"10.0.0.7"}}, {}, true), ElementsAre(finds(Level::kOk, "10.0.0.7")));
  EXPECT_THAT(judge_own_name("node7", trap), ElementsAre(advises(Level::kNote, "node7, is 127.0.1.1", "/etc/hosts")));
}

TEST(Names, ALocalHostnameOfAnotherHostIsAnError) {
  EXPECT_THAT(judge_local_hostname("10.9.9.9", Resolved{{"10.9.9.9"}}, {ErrorCode::kInvalidParams, "no address of this machine"}, true),
              ElementsAre(finds(Level::kError, "no address of this machine")));
}

TEST(Names, ANameThatDoesNotResolveIsAnErrorThatNamesIt) {
  const auto resolved = resolve_name("no-such-host.invalid", Deadline::after(std::chrono::seconds(5)));
  ASSERT_FALSE(resolved.ok());
  EXPECT_THAT(judge_server_name("master", "no-such-host.invalid", resolved), ElementsAre(finds(Level::kError, "no-such-host.invalid")));
  EXPECT_THAT(judge_local_hostname("no-such-host.invalid", resolved, {}, false), ElementsAre(finds(Level::kError, "no-such-host.invalid")));
}

TEST(Names, AnAddressIsItself) {
  const auto resolved = resolve_name("::1", Deadline::after(std::chrono::seconds(5)));
  ASSERT_TRUE(resolved.ok()) << resolved.status().to_string();
  EXPECT_THAT(resolved->addresses, ElementsAre("::1"));
  EXPECT_TRUE(resolved->only_loopback());
}

}  // namespace
}  // namespace moonpool::cli::doctor
