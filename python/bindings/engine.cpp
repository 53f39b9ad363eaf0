#include "python/bindings/engine.h"

#include "base/logging.h"
#include "python/bindings/gil.h"
#include "transfer/cuda/driver/driver.h"

namespace moonpool::python {

namespace {

constexpr std::size_t kAnsweredKept = 4096;

std::int32_t log_failure(std::string_view call, const Status& status, std::int32_t code = -1) {
  if (status.ok()) return 0;
  log::error("{}: {}", call, status.to_string());
  return code;
}

}  // namespace

Engine::~Engine() {
  // Collected by Python, with the interpreter lock held; stopping the server waits for its threads.
  without_gil([&] { shut_down(); });
}

void Engine::shut_down() { static_cast<void>(handle_.take()); }

std::int32_t Engine::initialize(transfer::EngineOptions options, const transfer::rdma::Variables& rdma) {
  if (options.protocol == "rdma") {
    auto set = transfer::rdma::with_variables(std::move(options.rdma), rdma);
    if (!set.ok()) return log_failure("TransferEngine.initialize failed", set.status());
    options.rdma = std::move(*set);
  }
  const Status status = handle_.open([&] { return transfer::TransferEngine::create(std::move(options)); });
  if (status.ok()) warned_ = false;
  return log_failure("TransferEngine.initialize failed", status);
}

std::shared_ptr<transfer::TransferEngine> Engine::get(std::string_view call) {
  auto engine = handle_.get();
  if (engine == nullptr && !warned_.exchange(true)) {
    log::error("TransferEngine.{}: not initialised in this process: call initialize(hostname, metadata, protocol, device) first", call);
  }
  return engine;
}

std::int32_t Engine::transfer(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces,
                              const transfer::Notification* notification) {
  const auto engine = get("transfer_sync");
  if (engine == nullptr) return -1;
  return log_failure(opcode == transfer::Opcode::kRead ? "transfer read" : "transfer write",
                     engine->transfer(peer, opcode, pieces, notification));
}

std::int32_t Engine::transfer_on_cuda(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces,
                                      std::uint64_t stream) {
  const auto engine = get("transfer_on_cuda");
  if (engine == nullptr) return -1;
  return log_failure(opcode == transfer::Opcode::kRead ? "transfer read on cuda" : "transfer write on cuda",
                     engine->transfer_after(transfer::cuda::Stream{stream}, peer, opcode, pieces));
}

std::uint64_t Engine::submit(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces) {
  const auto engine = get("batch_transfer_async");
  if (engine == nullptr) return 0;
  const auto id = engine->submit(peer, opcode, std::move(pieces));
  if (!id.ok()) {
    log_failure("transfer", id.status());
    return 0;
  }
  return *id;
}

std::int32_t Engine::wait_all(const std::vector<std::uint64_t>& ids) {
  const auto engine = get("get_batch_transfer_status");
  if (engine == nullptr) return -1;
  std::int32_t answer = 0;
  for (const std::uint64_t id : ids) {
    if (log_failure("get_batch_transfer_status", engine->wait(id)) != 0) answer = -1;
  }
  return answer;
}

std::int32_t Engine::check(std::uint64_t id) {
  const auto engine = get("transfer_check_status");
  if (engine == nullptr) return -1;
  const auto state = engine->state(id);
  if (!state.ok()) return log_failure("transfer_check_status", state.status());
  if (*state == transfer::TransferState::kPending) return 0;
  {
    const std::lock_guard lock(mutex_);
    answered_.push_back(id);
    if (answered_.size() > kAnsweredKept) {
      engine->forget(answered_.front());
      answered_.pop_front();
    }
  }
  if (*state == transfer::TransferState::kDone) return 1;
  return *state == transfer::TransferState::kTimedOut ? -2 : -1;
}

std::uint64_t Engine::allocate_managed(std::uint64_t size) {
  const auto engine = get("allocate_managed_buffer");
  if (engine == nullptr || size == 0) return 0;
  const std::lock_guard lock(mutex_);
  const std::uint64_t address = managed_.allocate(size);
  if (address == 0) return 0;
  const Status status = engine->register_memory(address, size);
  if (status.ok()) return address;
  log_failure("allocate_managed_buffer", status);
  managed_.release(address);
  return 0;
}

std::int32_t Engine::free_managed(std::uint64_t address) {
  const auto engine = get("free_managed_buffer");
  if (engine == nullptr) return -1;
  const std::lock_guard lock(mutex_);
  if (!managed_.owns(address)) {
    return log_failure("free_managed_buffer",
                       Status(ErrorCode::kInvalidParams, "the address is not one that allocate_managed_buffer gave"));
  }
  // Still registered means that a peer may be writing to it: then it stays mapped until this object goes.
  const Status status = engine->unregister_memory(address);
  if (!status.ok()) return log_failure("free_managed_buffer", status);
  return managed_.release(address) == 0 ? 0 : -1;
}

}  // namespace moonpool::python
