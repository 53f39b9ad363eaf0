#include "transfer/grant_ledger.h"

#include <gtest/gtest.h>

namespace moonpool::transfer {
namespace {

constexpr Version grant(std::uint64_t term, std::uint64_t count) { return {Term{term}, count}; }

TEST(GrantLedgerTest, OnlyTheCurrentTermsGrantsHold) {
  GrantLedger ledger(Term{5});
  EXPECT_TRUE(ledger.holds(0, grant(5, 1)));
  EXPECT_FALSE(ledger.holds(0, grant(4, 9)));
  EXPECT_FALSE(ledger.holds(0, grant(6, 1)));
  EXPECT_EQ(ledger.check(0, grant(4, 9)).code(), ErrorCode::kStaleTerm);
}

TEST(GrantLedgerTest, ARetirementThatOvertakesItsWriteIsRemembered) {
  GrantLedger ledger(Term{5});
  ledger.retire(4096, grant(5, 3));
  EXPECT_FALSE(ledger.holds(4096, grant(5, 3)));
  EXPECT_TRUE(ledger.holds(8192, grant(5, 3))) << "another replica of the same put";
  EXPECT_TRUE(ledger.holds(4096, grant(5, 4))) << "the next owner of the range";
  EXPECT_EQ(ledger.check(4096, grant(5, 3)).code(), ErrorCode::kStaleTerm);
}

TEST(GrantLedgerTest, RetiredGrantsAreForgottenButNeverHonouredOnceTheOldestLiveGrantPassedThem) {
  GrantLedger ledger(Term{5});
  for (std::uint64_t count = 1; count <= 100; ++count) ledger.retire(count * 4096, grant(5, count));
  EXPECT_EQ(ledger.remembered(), 100U);
  ledger.set_oldest(grant(5, 91));
  EXPECT_EQ(ledger.remembered(), 10U);
  EXPECT_FALSE(ledger.holds(4096, grant(5, 1)));
  EXPECT_FALSE(ledger.holds(91 * 4096, grant(5, 91)));
  EXPECT_TRUE(ledger.holds(0, grant(5, 91))) << "the oldest live grant itself is live";
  ledger.retire(4096, grant(5, 2));
  EXPECT_EQ(ledger.remembered(), 10U) << "nothing is remembered of grants that are refused anyway";
}

TEST(GrantLedgerTest, TheOldestLiveGrantNeverGoesBack) {
  GrantLedger ledger(Term{5});
  ledger.set_oldest(grant(5, 50));
  ledger.set_oldest(grant(5, 10));
  EXPECT_FALSE(ledger.holds(0, grant(5, 20)));
  ledger.set_oldest(grant(4, 99));
  ledger.set_oldest(grant(6, 1));
  EXPECT_EQ(ledger.oldest(), grant(5, 50));
}

TEST(GrantLedgerTest, AHigherTermVoidsAllThatCameBefore) {
  GrantLedger ledger(Term{5});
  ledger.retire(4096, grant(5, 3));
  ledger.set_oldest(grant(5, 2));
  ledger.adopt(Term{4});
  EXPECT_EQ(ledger.term(), Term{5});
  ledger.adopt(Term{6});
  EXPECT_EQ(ledger.remembered(), 0U);
  EXPECT_FALSE(ledger.holds(0, grant(5, 60)));
  EXPECT_TRUE(ledger.holds(4096, grant(6, 1)));
}

}  // namespace
}  // namespace moonpool::transfer
