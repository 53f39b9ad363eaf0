#include "transfer/rdma/verbs/open_devices.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>

#include "base/logging.h"
#include "transfer/rdma/devices.h"
#include "transfer/rdma/verbs/device_names.h"
#include "transfer/rdma/verbs/devices_list.h"
#include "transfer/rdma/verbs/error_text.h"
#include "transfer/rdma/verbs/library.h"
#include "transfer/rdma/verbs/sysfs.h"
#include "transfer/rdma/verbs/verbs_nic.h"

namespace moonpool::transfer::rdma {
namespace {

// libibverbs' list, by name. Devices have to be opened while it lives.
class DeviceList {
 public:
  static Result<DeviceList> get(const Verbs& verbs) {
    int count = 0;
    errno = 0;
    ibv_device** list = verbs.get_device_list(&count);
    // Without the kernel's ib_uverbs there is no list at all: the same as an empty one.
    if (list == nullptr && errno != ENOSYS && errno != ENOENT && errno != ENODEV) {
      return Status(ErrorCode::kNotSupported, fmt::format("libibverbs does not list this host's devices: {}", error_text(errno)));
    }
    return DeviceList(verbs, list, list == nullptr ? 0 : count);
  }
  [[nodiscard]] const std::vector<ibv_device*>& devices() const { return devices_; }

 private:
  DeviceList(const Verbs& verbs, ibv_device** list, int count)
      : list_(list, [&verbs](ibv_device** it) {
          if (it != nullptr) verbs.free_device_list(it);
        }) {
    if (count > 0) devices_.assign(list, list + count);
    std::ranges::sort(devices_,
                      [&](ibv_device* a, ibv_device* b) { return std::strcmp(verbs.get_device_name(a), verbs.get_device_name(b)) < 0; });
  }
  std::unique_ptr<ibv_device*, std::function<void(ibv_device**)>> list_;
  std::vector<ibv_device*> devices_;
};

struct Found {
  std::string name;
  std::unique_ptr<OpenDevice> device;  // null when `error` says why
  Status error;

  [[nodiscard]] std::string state() const { return device ? device->state : error.message(); }
};

std::vector<Found> open_all(const Verbs& verbs, const DeviceList& list, const Options& options) {
  std::vector<Found> all;
  for (ibv_device* one : list.devices()) {
    Found found{verbs.get_device_name(one), nullptr, {}};
    auto opened = OpenDevice::open(verbs, one, options.port);
    if (opened.ok()) {
      found.device = std::move(*opened);
    } else {
      found.error = opened.status();
    }
    all.push_back(std::move(found));
  }
  return all;
}

// A setting that leaves no address is a mistake that would else show up as connections that fail.
Status check_gid_index(const OpenDevice& device, const Options& options) {
  const NicInfo& info = device.port().info;
  if (options.gid_index < 0 || info.iwarp) return {};
  if (std::ranges::any_of(info.gids, [&](const Gid& gid) { return gid.index == static_cast<std::uint32_t>(options.gid_index); })) return {};
  return {ErrorCode::kInvalidParams,
          fmt::format("{} has no GID of index {}: it has {}; see `moonpool doctor`", info.name, options.gid_index,
                      info.gids.empty() ? "none" : fmt::format("{} to {}", info.gids.front().index, info.gids.back().index))};
}

}  // namespace

Result<std::vector<std::unique_ptr<Nic>>> open_nics(const Options& options) {
  const auto names = parse_device_names(options.device_names);
  if (!names.ok()) return names.status();
  const auto library = verbs();
  if (!library.ok()) return library.status();
  const auto list = DeviceList::get(**library);
  if (!list.ok()) return list.status();
  if (list->devices().empty()) return Status(ErrorCode::kNotSupported, no_devices_text());

  std::vector<Found> all = open_all(**library, *list, options);
  std::vector<KnownDevice> known;
  for (const Found& found : all) known.push_back({found.name, found.state(), found.device && found.device->active()});
  const auto chosen = choose_devices(*names, known);
  if (!chosen.ok()) return chosen.status();

  const bool named = !names->empty();
  std::vector<std::unique_ptr<Nic>> nics;
  Status last;
  for (const std::size_t position : *chosen) {
    Found& found = all[position];
    Status status = found.error;
    if (status.ok()) status = check_gid_index(*found.device, options);
    if (status.ok()) status = found.device->prepare(options.work_requests);
    if (status.ok()) {
      nics.push_back(std::make_unique<VerbsNic>(std::move(found.device)));
      continue;
    }
    if (named) return status;
    log::warning("{} is left out: {}", found.name, status.message());
    last = status;
  }
  if (nics.empty()) return last;
  return nics;
}

Result<std::shared_ptr<Devices>> Devices::open(const Options& options) {
  auto nics = open_nics(options);
  if (!nics.ok()) return nics.status();
  return std::make_shared<Devices>(std::move(*nics));
}

Result<std::vector<ListedDevice>> list_devices(const Options& options) {
  const auto library = verbs();
  if (!library.ok()) return library.status();
  const auto list = DeviceList::get(**library);
  if (!list.ok()) return list.status();
  const auto names = parse_device_names(options.device_names);
  std::vector<ListedDevice> listed;
  for (Found& found : open_all(**library, *list, options)) {
    ListedDevice one;
    one.info.name = found.name;
    one.state = "unknown";
    Status status = found.error;
    if (found.device) {
      one.firmware = found.device->firmware;
      one.rate = found.device->rate;
      one.state = found.device->state;
      status = check_gid_index(*found.device, options);
      if (status.ok()) status = found.device->prepare(options.work_requests);
      one.info = found.device->port().info;
    }
    one.reason = status.message();
    if (!names.ok()) {
      one.reason = names.status().message();
    } else if (status.ok() && !names->empty() && std::ranges::find(*names, found.name) == names->end()) {
      one.reason = "not named in \"device_name\"";
    } else if (status.ok() && names->empty() && !found.device->active()) {
      one.reason = fmt::format(
          "its port is {}: bring up the cable, the switch's port and the interface {}; named in \"device_name\", it is used once it is up",
          one.state, one.info.interface);
    }
    one.usable = one.reason.empty();
    listed.push_back(std::move(one));
  }
  return listed;
}

std::string no_devices_text() { return why_no_devices(); }

}  // namespace moonpool::transfer::rdma
