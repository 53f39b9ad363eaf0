#include "transfer/grant_ledger.h"

#include <string>

namespace moonpool::transfer {

void GrantLedger::adopt(Term term) {
  if (term <= term_) return;
  term_ = term;
  oldest_ = {};
  retired_.clear();
}

void GrantLedger::set_oldest(Version version) {
  if (version.term != term_ || version <= oldest_) return;
  oldest_ = version;
  retired_.erase(retired_.begin(), retired_.lower_bound(Retired{version, 0}));
}

void GrantLedger::retire(std::uint64_t offset, Version version) {
  // Grants of other terms, and those already passed, are refused without being remembered.
  if (version.term == term_ && version >= oldest_) retired_.insert(Retired{version, offset});
}

bool GrantLedger::holds(std::uint64_t offset, Version version) const {
  return version.term == term_ && version >= oldest_ && !retired_.contains(Retired{version, offset});
}

Status GrantLedger::check(std::uint64_t offset, Version version) const {
  if (holds(offset, version)) return {};
  if (version.term != term_) {
    return {ErrorCode::kStaleTerm, "the write grant is of term " + std::to_string(version.term.value) + ", the owner follows term " +
                                       std::to_string(term_.value) + ": start the put again"};
  }
  const char* const rule = version < oldest_ ? "is older than the oldest live one" : "was retired by the master";
  return {ErrorCode::kStaleTerm, "the write grant " + std::to_string(version.count) + " " + rule + ": start the put again"};
}

}  // namespace moonpool::transfer
