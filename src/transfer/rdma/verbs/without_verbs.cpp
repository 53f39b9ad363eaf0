// In place of the rest of this folder where the headers of libibverbs are missing (MOONPOOL_WITH_RDMA).
#include "transfer/rdma/devices.h"
#include "transfer/rdma/verbs/devices_list.h"
#include "transfer/rdma/verbs/open_devices.h"

namespace moonpool::transfer::rdma {
namespace {

constexpr const char* kReason =
    "this build has no RDMA: build with libibverbs-dev and librdmacm-dev installed (MOONPOOL_WITH_RDMA=ON), or set \"protocol\": \"tcp\"";

}  // namespace

Result<std::vector<std::unique_ptr<Nic>>> open_nics(const Options&) { return Status(ErrorCode::kNotSupported, kReason); }
Result<std::shared_ptr<Devices>> Devices::open(const Options&) { return Status(ErrorCode::kNotSupported, kReason); }
Result<std::vector<ListedDevice>> list_devices(const Options&) { return Status(ErrorCode::kNotSupported, kReason); }
std::string no_devices_text() { return kReason; }

}  // namespace moonpool::transfer::rdma
