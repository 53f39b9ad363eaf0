#include "transfer/cuda/fake/fake_faults.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace moonpool::transfer::cuda {
namespace {

constexpr std::array<std::string_view, 16> kFunctions{
    "facts",         "create_stream",  "create_event", "record", "wait",       "done",     "allocate",           "allocate_host",
    "register_host", "device_address", "copy",         "launch", "export_ipc", "open_ipc", "enable_peer_access", "export_dma_buf"};

}  // namespace

void FakeFaults::add(std::string_view function, Status status, int skip, bool late) {
  const bool known = std::find(kFunctions.begin(), kFunctions.end(), function) != kFunctions.end();
  const bool has_work = function == "copy" || function == "launch";
  if (!known || (late && !has_work) || status.ok()) {
    std::fprintf(stderr, "FakeDriver::fail(\"%.*s\"): no such fault\n", int(function.size()), function.data());
    std::abort();
  }
  const std::lock_guard lock(mutex_);
  faults_[std::string(function)].push_back({skip, std::move(status), late});
}

FakeFaults::Verdict FakeFaults::next(std::string_view function) {
  const std::lock_guard lock(mutex_);
  const auto found = faults_.find(function);
  if (found == faults_.end()) return {};
  Verdict verdict;
  auto& faults = found->second;
  for (auto fault = faults.begin(); fault != faults.end();) {
    if (fault->skip-- > 0) {
      ++fault;
      continue;
    }
    Status& to = fault->late ? verdict.work : verdict.call;
    if (to.ok()) to = std::move(fault->status);
    fault = faults.erase(fault);
  }
  return verdict;
}

}  // namespace moonpool::transfer::cuda
