#include "transfer/rdma/verbs/registration.h"

#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/logging.h"
#include "transfer/rdma/verbs/error_text.h"

namespace moonpool::transfer::rdma {
namespace {

class VerbsRegistration final : public Registration {
 public:
  VerbsRegistration(const Verbs& verbs, ibv_mr* region, std::string nic) : verbs_(verbs), region_(region), nic_(std::move(nic)) {}
  // The kernel's deregistration returns once the NIC has forgotten the key and no access under it is in flight.
  ~VerbsRegistration() override {
    if (const int error = verbs_.dereg_mr(region_); error != 0) {
      log::error("{}: memory could not be deregistered ({}); peers may still reach it until this process ends", nic_, error_text(error));
    }
  }
  VerbsRegistration(const VerbsRegistration&) = delete;
  VerbsRegistration& operator=(const VerbsRegistration&) = delete;

  [[nodiscard]] std::uint32_t local_key() const override { return region_->lkey; }
  [[nodiscard]] std::uint32_t remote_key() const override { return region_->rkey; }

 private:
  const Verbs& verbs_;
  ibv_mr* const region_;
  const std::string nic_;
};

int flags_of(const NicInfo& nic, Access access) {
  // No relaxed ordering: an owner publishes what a peer has written when a message over another device says so, and a read is checked as
  // soon as it completes.
  int flags = IBV_ACCESS_LOCAL_WRITE;
  if (access == Access::kServed) flags |= IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
  if (nic.read_needs_remote_write) flags |= IBV_ACCESS_REMOTE_WRITE;
  return flags;
}

std::string mebibytes(std::uint64_t bytes) {
  if (bytes < (std::uint64_t{1} << 20)) return fmt::format("{} KiB", bytes >> 10);
  return fmt::format("{} MiB", bytes >> 20);
}

}  // namespace

PinningLimits pinning_limits() {
  PinningLimits limits;
  rlimit locked{};
  if (::getrlimit(RLIMIT_MEMLOCK, &locked) == 0) {
    limits.limit = locked.rlim_cur;
    limits.unlimited = locked.rlim_cur == RLIM_INFINITY;
  }
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmPin:") continue;
    status >> limits.pinned;  // kB
    limits.pinned <<= 10;
    break;
  }
  return limits;
}

std::string why_not_registered(int error, const std::string& nic, std::uint64_t bytes, const PinningLimits& limits) {
  const std::string what = fmt::format("{} cannot register {} of memory", nic, mebibytes(bytes));
  switch (error) {
    case ENOMEM:
      if (!limits.unlimited) {
        return fmt::format(
            "{}: the limit of locked memory (RLIMIT_MEMLOCK) is {}, {} are pinned already; raise it with `ulimit -l unlimited`, "
            "LimitMEMLOCK=infinity "
            "in a systemd unit, or --cap-add IPC_LOCK --ulimit memlock=-1 for a container",
            what, mebibytes(limits.limit), mebibytes(limits.pinned));
      }
      return fmt::format(
          "{}: out of memory for pages or for the NIC's translation tables ({} are pinned already); use huge pages or a smaller segment",
          what, mebibytes(limits.pinned));
    case EINVAL:
      return fmt::format(
          "{}: the driver refuses the range (EINVAL): it is longer than the NIC allows, or of a kind that it cannot pin; with huge pages "
          "on a "
          "kernel before 5.12, set RDMAV_HUGEPAGES_SAFE=1",
          what);
    case EFAULT:
      return what + ": part of it is not mapped, or mapped read-only";
    case ENOSPC:
      return what + ": the NIC has no registration left; lend fewer, larger segments";
    case EPERM:
    case EACCES:
      return what + ": permission denied; in a container add the capability IPC_LOCK and the devices in /dev/infiniband";
    case EOPNOTSUPP:
      return what + ": the driver cannot pin this kind of memory (file-backed, or a device's)";
    default:
      return fmt::format("{}: {}", what, error_text(error));
  }
}

// Segments on huge pages need nothing more here: the drivers find runs of contiguous pages by themselves, so that one entry of the NIC's
// translation table covers 2 MiB or 1 GiB, and registering takes a fraction of the time.
Result<std::unique_ptr<Registration>> register_with(const Verbs& verbs, ibv_pd* domain, const NicInfo& nic, MutableBytes memory,
                                                    Access access) {
  if (memory.empty()) return Status(ErrorCode::kInvalidParams, nic.name + ": there is no memory to register");
  errno = 0;
  ibv_mr* region = verbs.reg_mr(domain, memory.data(), memory.size(), flags_of(nic, access));
  if (region == nullptr) {
    return Status(ErrorCode::kUnavailable, why_not_registered(errno, nic.name, memory.size(), pinning_limits()));
  }
  return std::unique_ptr<Registration>(new VerbsRegistration(verbs, region, nic.name));
}

Result<std::unique_ptr<Registration>> register_with(const Verbs& verbs, ibv_pd* domain, const NicInfo& nic, MutableBytes memory,
                                                    const DmaBuf& buffer, Access access) {
  if (memory.empty()) return Status(ErrorCode::kInvalidParams, nic.name + ": there is no device memory to register");
  if (verbs.reg_dmabuf_mr == nullptr) {
    return Status(ErrorCode::kNotSupported, nic.name +
                                                " cannot register device memory: this libibverbs has no ibv_reg_dmabuf_mr; install "
                                                "rdma-core 34 or newer (libibverbs1)");
  }
  errno = 0;
  ibv_mr* region = verbs.reg_dmabuf_mr(domain, buffer.offset, memory.size(), reinterpret_cast<std::uint64_t>(memory.data()), buffer.file,
                                       flags_of(nic, access));
  if (region == nullptr) {
    const int error = errno;
    const std::string what = fmt::format("{} cannot register {} of device memory", nic.name, mebibytes(memory.size()));
    if (error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EPROTONOSUPPORT) {
      return Status(ErrorCode::kNotSupported,
                    what + ": its driver takes no dma-buf (mlx5 does, with Linux 5.12 or newer); it goes by way of the host's memory");
    }
    return Status(ErrorCode::kUnavailable,
                  fmt::format("{}: {}; a larger BAR1 of the GPU, or an IOMMU in passthrough mode (iommu=pt), may be what it wants", what,
                              error_text(error)));
  }
  return std::unique_ptr<Registration>(new VerbsRegistration(verbs, region, nic.name));
}

}  // namespace moonpool::transfer::rdma
