// Which write grants a segment still honours.
//
// A grant is a put's Version for one extent. It holds when it is of the current term, not older than the oldest live grant that the master
// has named, and not retired. Retired grants are remembered until the oldest live grant has passed them: a retirement may overtake the
// write that it fences (they travel on different connections), and the late write must then find it. So memory is bounded by
// the puts that the master has in flight.
// Threads: none of its own; the segment's mutex guards it.
#pragma once

#include <compare>
#include <cstdint>
#include <set>

#include "base/ids.h"
#include "base/result.h"

namespace moonpool::transfer {

class GrantLedger {
 public:
  explicit GrantLedger(Term term) : term_(term) {}

  // A higher term voids all that came before it. Lower and equal ones change nothing.
  void adopt(Term term);
  // Grants older than this are refused from now on, and forgotten. Ignored unless it is of the current term and newer than the last one.
  void set_oldest(Version version);
  void retire(std::uint64_t offset, Version version);

  // Ok when a write under this grant may begin, or be published; else kStaleTerm saying which rule it broke.
  [[nodiscard]] Status check(std::uint64_t offset, Version version) const;
  [[nodiscard]] bool holds(std::uint64_t offset, Version version) const;
  [[nodiscard]] Term term() const { return term_; }
  [[nodiscard]] Version oldest() const { return oldest_; }
  [[nodiscard]] std::size_t remembered() const { return retired_.size(); }

 private:
  // Ordered by version first, so that those passed by the oldest live grant are a prefix.
  struct Retired {
    Version version;
    std::uint64_t offset = 0;
    auto operator<=>(const Retired&) const = default;
  };

  Term term_;
  Version oldest_;
  std::set<Retired> retired_;
};

}  // namespace moonpool::transfer
