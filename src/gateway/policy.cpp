#include "gateway/policy.h"

#include <atomic>
#include <string>

namespace moonpool::gateway {

namespace {

class RoundRobin final : public Policy {
 public:
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts&) override {
    return next_.fetch_add(1, std::memory_order_relaxed) % candidates.size();
  }
  std::string_view name() const override { return "round_robin"; }

 private:
  std::atomic<std::size_t> next_{0};
};

}  // namespace

Result<std::unique_ptr<Policy>> make_policy(std::string_view name) {
  if (name == "round_robin") return std::unique_ptr<Policy>(std::make_unique<RoundRobin>());
  return Status(ErrorCode::kConfig, "--scheduling " + std::string(name) + " is not known: use round_robin");
}

}  // namespace moonpool::gateway
