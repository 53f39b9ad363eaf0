// Shared memory between real processes: its user is stopped, killed, another user, in another network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "tests/support/test_support.h"
#include "transfer/checksum.h"
#include "transfer/local/local_transport.h"
#include "transfer/shm/owner_server.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::ChildProcess;

constexpr Term kTerm{3};
constexpr std::uint64_t kSize = 4 * kChecksumChunk;

Deadline soon() { return Deadline::after(seconds(30)); }

char state_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');
  return name_end != std::string::npos && name_end + 2 < text.size() ? text[name_end + 2] : '?';
}

class ShmFaultsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.start().ok());
    ASSERT_TRUE(owner_.adopt_term(kTerm, soon()).ok());
    incarnation_ = *owner_.mount(std::uint64_t{16} << 20);
  }
  ChildProcess start(std::vector<std::string> argv) {
    auto child = ChildProcess::start({.argv = std::move(argv), .log_file = folder_.file("user.log")});
    if (!child.ok()) {
      ADD_FAILURE() << child.status().to_string();
      std::abort();
    }
    return std::move(child).value();
  }
  ChildProcess user(const char* command, const ExtentRef& ref, std::uint64_t checksum = 0) {
    return start({SHM_USER, command, node_.to_string(), ref.incarnation.to_string(), std::to_string(ref.version.term.value),
                  std::to_string(ref.version.count), std::to_string(ref.length), std::to_string(checksum)});
  }
  std::string reason(std::vector<std::string> argv) {
    auto child = start(std::move(argv));
    EXPECT_TRUE(child.wait(soon()).has_value());
    return child.output();
  }
  bool retired(const ExtentRef& ref, std::chrono::nanoseconds wait) {
    const RetirementOrder order{ref.version.count, ref};
    return owner_.retire({&order, 1}, Deadline::after(wait)).size() == 1;
  }

  const NodeId node_ = NodeId::generate();
  const net::Identity identity_{node_, "token", "test"};
  test::TempDir folder_;
  Owner owner_;
  OwnerServer server_{owner_, identity_};
  Incarnation incarnation_;
};

TEST_F(ShmFaultsTest, AWriterStoppedInMidCopyKeepsItsExtentUntilItIsKilled) {
  const ExtentRef ref{incarnation_, 0, kSize, Version{kTerm, 1}};
  auto writer = user("write", ref);
  ASSERT_TRUE(test::wait_until([&] { return state_of(writer.pid()) == 'T'; }, soon())) << writer.output();
  EXPECT_FALSE(retired(ref, milliseconds(100)));
  EXPECT_FALSE(retired(ref, milliseconds(100))) << "time alone releases nothing";
  writer.kill();
  EXPECT_TRUE(retired(ref, seconds(20)));
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(ShmFaultsTest, AWriterStoppedInMidCopyIsToldWhenItGoesOn) {
  const ExtentRef ref{incarnation_, 0, kSize, Version{kTerm, 1}};
  auto writer = user("write", ref);
  ASSERT_TRUE(test::wait_until([&] { return state_of(writer.pid()) == 'T'; }, soon())) << writer.output();
  EXPECT_FALSE(retired(ref, milliseconds(50)));
  writer.signal(SIGCONT);
  EXPECT_TRUE(retired(ref, seconds(20)));
  EXPECT_EQ(writer.wait(soon()), 1);
  EXPECT_THAT(writer.output(), ::testing::HasSubstr("stale_term"));
}

// As while a killed process is taken apart: its connection may be closed before the device that writes for it is.
TEST_F(ShmFaultsTest, AWriterInPlaceWhoseConnectionHasEndedKeepsItsExtentUntilItsProcessHas) {
  const ExtentRef ref{incarnation_, 0, kSize, Version{kTerm, 1}};
  auto writer = user("fill", ref);
  ASSERT_TRUE(test::wait_until([&] { return writer.output().find("filling") != std::string::npos; }, soon())) << writer.output();
  EXPECT_FALSE(retired(ref, milliseconds(100)));
  EXPECT_EQ(server_.sessions(), 1U);
  writer.kill();
  EXPECT_TRUE(retired(ref, seconds(20)));
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(ShmFaultsTest, AReaderThatIsKilledReleasesItsView) {
  const ExtentRef ref{incarnation_, 0, kSize, Version{kTerm, 1}};
  const std::vector<std::byte> data(kSize, std::byte{6});
  const ConstBytes piece(data);
  WriteOperation write{ref, "key", {&piece, 1}, {}, 0};
  LocalTransport local(owner_, node_);
  local.write({node_, {}}, {&write, 1}, soon());
  ASSERT_TRUE(write.status.ok());
  auto reader = user("view", ref, write.checksum);
  ASSERT_TRUE(test::wait_until([&] { return reader.output().find("viewing") != std::string::npos; }, soon())) << reader.output();
  EXPECT_FALSE(retired(ref, milliseconds(100)));
  reader.kill();
  EXPECT_TRUE(retired(ref, seconds(20)));
}

TEST_F(ShmFaultsTest, TheSameUserReachesItAndAnotherDoesNot) {
  EXPECT_THAT(reason({SHM_USER, "reason", node_.to_string()}), ::testing::HasSubstr("reached"));
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  EXPECT_THAT(reason({SHM_USER, "reason", node_.to_string(), "65534"}), ::testing::HasSubstr("uid 0 is not 65534"));
}

TEST_F(ShmFaultsTest, AnotherNetworkNamespaceDoesNotReachIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to make a network namespace";
  const std::string text = reason({"unshare", "--net", SHM_USER, "reason", node_.to_string()});
  if (text.find("unshare failed") != std::string::npos) GTEST_SKIP() << text;
  EXPECT_THAT(text, ::testing::HasSubstr("no common Unix socket namespace"));
}

}  // namespace
}  // namespace moonpool::transfer
