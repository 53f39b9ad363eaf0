#include "transfer/rdma/simulated_nic.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "transfer/rdma/simulated_fabric.h"

namespace moonpool::transfer::rdma {

namespace {

using simulated::Gate;
using simulated::kNever;
using simulated::NicState;
using simulated::RegisteredPart;
using State = SimulatedFabric::State;

// A device's memory, mapped from its dma-buf.
class MappedBuffer {
 public:
  MappedBuffer() = default;
  MappedBuffer(const DmaBuf& buffer, std::uint64_t length) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = static_cast<std::uint64_t>(::lseek(buffer.file, 0, SEEK_CUR)) + buffer.offset;
    lead_ = begin % page;
    size_ = length + lead_;
    void* const mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, buffer.file, static_cast<off_t>(begin - lead_));
    if (mapped != MAP_FAILED) memory_ = static_cast<std::byte*>(mapped);
  }
  MappedBuffer(MappedBuffer&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)), size_(other.size_), lead_(other.lead_) {}
  MappedBuffer& operator=(MappedBuffer&&) = delete;
  ~MappedBuffer() {
    if (memory_ != nullptr) ::munmap(memory_, size_);
  }
  [[nodiscard]] std::byte* bytes() const { return memory_ == nullptr ? nullptr : memory_ + lead_; }

 private:
  std::byte* memory_ = nullptr;
  std::uint64_t size_ = 0;
  std::uint64_t lead_ = 0;  // before the range, in its first page
};

class SimulatedRegistration final : public Registration {
 public:
  SimulatedRegistration(std::shared_ptr<State> state, NicState& nic, MutableBytes memory, Access access, MappedBuffer mapped = {})
      : state_(std::move(state)), nic_(nic), mapped_(std::move(mapped)) {
    const std::lock_guard lock(state_->mutex);
    // Never zero, and never the same number for both.
    local_key_ = (state_->next_key += 0x101) | 1U;
    remote_key_ = ~local_key_;
    const RegisteredPart part{&nic, memory, access, mapped_.bytes() == nullptr ? memory.data() : mapped_.bytes()};
    state_->by_local_key.insert_or_assign(local_key_, part);
    state_->by_remote_key.insert_or_assign(remote_key_, part);
    ++nic.counts.registrations;
    ++nic.counts.registered;
    if (mapped_.bytes() != nullptr) ++nic.counts.dma_bufs;
  }
  ~SimulatedRegistration() override {
    const State::Alone alone(*state_);
    const std::lock_guard lock(state_->mutex);
    state_->by_local_key.erase(local_key_);
    state_->by_remote_key.erase(remote_key_);
    --nic_.counts.registered;
    if (mapped_.bytes() != nullptr) --nic_.counts.dma_bufs;
  }
  [[nodiscard]] std::uint32_t local_key() const override { return local_key_; }
  [[nodiscard]] std::uint32_t remote_key() const override { return remote_key_; }

 private:
  std::shared_ptr<State> state_;
  NicState& nic_;
  const MappedBuffer mapped_;
  std::uint32_t local_key_ = 0;
  std::uint32_t remote_key_ = 0;
};

class SimulatedNic final : public Nic {
 public:
  SimulatedNic(std::shared_ptr<State> state, NicState& nic) : state_(std::move(state)), nic_(nic) {}

  [[nodiscard]] const NicInfo& info() const override { return nic_.info; }
  [[nodiscard]] bool up() const override { return nic_.up.load(); }
  void watch(std::function<void()> changed) override { nic_.changed = std::move(changed); }
  [[nodiscard]] std::vector<Gid> gids() const override { return nic_.info.gids; }

  [[nodiscard]] Result<std::unique_ptr<Registration>> register_memory(MutableBytes memory, Access access) override {
    MOONPOOL_RETURN_IF_ERROR(admit(memory));
    return std::unique_ptr<Registration>(std::make_unique<SimulatedRegistration>(state_, nic_, memory, access));
  }

  [[nodiscard]] Result<std::unique_ptr<Registration>> register_dma_buf(MutableBytes memory, const DmaBuf& buffer, Access access) override {
    if (!nic_.takes_dma_bufs) {
      return Status(ErrorCode::kNotSupported, nic_.info.name + " cannot register device memory: its driver takes no dma-buf");
    }
    MOONPOOL_RETURN_IF_ERROR(admit(memory));
    MappedBuffer mapped(buffer, memory.size());
    if (mapped.bytes() == nullptr) {
      return Status(ErrorCode::kUnavailable, nic_.info.name + " cannot map the dma-buf: " + std::strerror(errno));
    }
    return std::unique_ptr<Registration>(std::make_unique<SimulatedRegistration>(state_, nic_, memory, access, std::move(mapped)));
  }

  [[nodiscard]] Result<std::unique_ptr<QueuePair>> make_queue_pair(const QueuePairOptions& options) override {
    {
      const std::lock_guard lock(state_->mutex);
      if (nic_.refuses_queue_pairs) return Status(ErrorCode::kUnavailable, nic_.info.name + " cannot make more queue pairs");
    }
    return simulated::make_queue_pair(state_, nic_, options);
  }

 private:
  [[nodiscard]] Status admit(MutableBytes memory) const {
    const std::lock_guard lock(state_->mutex);
    if (!nic_.refuses_registrations) return {};
    return {ErrorCode::kUnavailable, nic_.info.name + " cannot register " + std::to_string(memory.size()) +
                                         " bytes: the limit of locked memory (memlock) is reached; raise it (ulimit -l)"};
  }

  const std::shared_ptr<State> state_;
  NicState& nic_;
};

}  // namespace

SimulatedFabric::SimulatedFabric() : state_(std::make_shared<State>()) {}
SimulatedFabric::~SimulatedFabric() = default;

std::unique_ptr<Nic> SimulatedFabric::make_nic(const std::string& name, const SimulatedNicSettings& settings) {
  auto state = std::make_unique<NicState>();
  const std::lock_guard lock(state_->mutex);
  NicInfo& info = state->info;
  info.name = name;
  info.iwarp = settings.iwarp;
  info.interface = "sim" + std::to_string(settings.network);
  info.driver = "simulated";
  info.numa_node = settings.numa_node;
  info.guid = state_->next_host;
  info.mtu = 4096;
  info.max_work_requests = settings.max_work_requests;
  info.max_pieces = settings.max_pieces;
  info.max_read_pieces = settings.iwarp ? 1 : settings.max_read_pieces;
  info.max_reads_out = 16;
  info.max_reads_in = 16;
  info.max_message = settings.max_message;
  info.read_needs_remote_write = settings.iwarp;
  Gid gid;
  gid.bytes = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, settings.network, state_->next_host++};
  gid.kind = settings.iwarp ? Gid::Kind::kIwarp : Gid::Kind::kRoceV2;
  gid.prefix_length = 120;
  info.gids.push_back(gid);
  state->network = settings.network;
  state->takes_dma_bufs = settings.dma_buf;
  auto& place = state_->nics[name];
  if (place) state_->replaced.push_back(std::move(place));  // what was made of it may still be there
  place = std::move(state);
  NicState& nic = *place;
  return std::make_unique<SimulatedNic>(state_, nic);
}

SimulatedFabric::Counts SimulatedFabric::counts(const std::string& nic) const {
  const std::lock_guard lock(state_->mutex);
  return state_->nic(nic).counts;
}

void SimulatedFabric::set_port(const std::string& nic, bool up) {
  NicState* state = nullptr;
  {
    const std::lock_guard lock(state_->mutex);
    state = &state_->nic(nic);
    if (state->up.exchange(up) == up) return;
  }
  if (state->changed) state->changed();
}

void SimulatedFabric::cut(const std::string& one, const std::string& other) {
  const std::lock_guard lock(state_->mutex);
  state_->cuts.insert({std::min(one, other), std::max(one, other)});
}

void SimulatedFabric::mend(const std::string& one, const std::string& other) {
  const std::lock_guard lock(state_->mutex);
  state_->cuts.erase({std::min(one, other), std::max(one, other)});
}

void SimulatedFabric::fail_at_work_request(const std::string& nic, std::uint64_t n) {
  const std::lock_guard lock(state_->mutex);
  state_->nic(nic).requests_until_death = n;
}

void SimulatedFabric::fail_after_bytes(const std::string& nic, std::uint64_t bytes) {
  const std::lock_guard lock(state_->mutex);
  state_->nic(nic).bytes_until_death = bytes;
}

void SimulatedFabric::revive(const std::string& nic) {
  const std::lock_guard lock(state_->mutex);
  NicState& state = state_->nic(nic);
  state.dead = false;
  state.requests_until_death = kNever;
  state.bytes_until_death = kNever;
}

std::shared_ptr<SimulatedGate> SimulatedFabric::hold(const std::string& nic, std::uint64_t n, std::uint64_t bytes) {
  auto gate = std::make_shared<Gate>();
  const std::lock_guard lock(state_->mutex);
  state_->nic(nic).holds.push_back({n - 1, bytes, gate});
  return gate;
}

void SimulatedFabric::refuse_registrations(const std::string& nic, bool refuse) {
  const std::lock_guard lock(state_->mutex);
  state_->nic(nic).refuses_registrations = refuse;
}

void SimulatedFabric::refuse_queue_pairs(const std::string& nic, bool refuse) {
  const std::lock_guard lock(state_->mutex);
  state_->nic(nic).refuses_queue_pairs = refuse;
}

}  // namespace moonpool::transfer::rdma
