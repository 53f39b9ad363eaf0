#include "tests/support/test_support.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <fstream>
#include <thread>

namespace moonpool::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(ChildProcessTest, ReportsExitStatusAndOutput) {
  const TempDir folder;
  auto child = ChildProcess::start({
      .argv = {"sh", "-c", "echo \"$GREETING\"; exit 7"},
      .environment = {{"GREETING", "good morning"}},
      .log_file = folder.file("log"),
  });
  ASSERT_TRUE(child.ok()) << child.status().to_string();
  EXPECT_EQ(child->wait(Deadline::after(seconds(10))), 7);
  EXPECT_EQ(child->output(), "good morning\n");
}

TEST(ChildProcessTest, MissingProgramIsAnError) {
  const auto child = ChildProcess::start({.argv = {"no-such-program-here"}});
  ASSERT_FALSE(child.ok());
  EXPECT_NE(child.status().message().find("no-such-program-here"), std::string::npos);
}

TEST(ChildProcessTest, DestructionEndsTheWholeGroup) {
  const TempDir folder;
  pid_t grandchild = -1;
  {
    auto child = ChildProcess::start({.argv = {"sh", "-c", "sleep 1000 & echo $! > pid.tmp; mv pid.tmp pid; wait"},
                                      .environment = {},
                                      .log_file = folder.file("log"),
                                      .working_directory = folder.path().string()});
    ASSERT_TRUE(child.ok()) << child.status().to_string();
    ASSERT_TRUE(
        wait_until([&] { return static_cast<bool>(std::ifstream(folder.file("pid")) >> grandchild); }, Deadline::after(seconds(10))));
    EXPECT_EQ(::kill(grandchild, 0), 0);
  }
  // An orphan's zombie is reaped by init, which in a container may take its time: dead or a zombie are both fine.
  EXPECT_TRUE(wait_until(
      [&] {
        std::ifstream stat("/proc/" + std::to_string(grandchild) + "/stat");
        std::string text((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
        return text.empty() || text.find(") Z") != std::string::npos;
      },
      Deadline::after(seconds(10))));
}

TEST(ChildProcessTest, StopEndsAStoppedProcess) {
  auto child = ChildProcess::start({.argv = {"sleep", "1000"}});
  ASSERT_TRUE(child.ok());
  child->signal(SIGSTOP);
  child->stop();
  EXPECT_FALSE(child->running());
}

TEST(WaitUntilTest, GivesUpAtItsDeadlineAndSeesAChangeBeforeIt) {
  EXPECT_FALSE(wait_until([] { return false; }, Deadline::after(milliseconds(20))));
  std::atomic<bool> done{false};
  std::thread other([&] { done = true; });
  EXPECT_TRUE(wait_until([&] { return done.load(); }, Deadline::after(seconds(10))));
  other.join();
}

TEST(TakesLessThanTest, ATimeIsMeasuredAgainAtMostTwice) {
  int measured = 0;
  const auto too_long = [&](int times) {
    measured = 0;
    return takes_less_than(milliseconds(10), [&measured, times] { return milliseconds(++measured <= times ? 10 : 9); });
  };
  EXPECT_TRUE(too_long(0));
  EXPECT_EQ(measured, 1);
  EXPECT_TRUE(too_long(2));
  EXPECT_EQ(measured, 3);
  EXPECT_FALSE(too_long(3));
  EXPECT_EQ(measured, 3);
}

TEST(FindProgramTest, NamesThePackageToInstall) {
  EXPECT_TRUE(find_program("sh", "dash").ok());
  const auto missing = find_program("no-such-program-here", "some-package");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.status().message().find("install some-package"), std::string::npos);
}

TEST(FreePortTest, NobodyListensThere) { EXPECT_FALSE(accepts_connections("127.0.0.1", free_port())); }

TEST(TempDirTest, IsRemovedWithItsContents) {
  std::filesystem::path path;
  {
    const TempDir folder;
    path = folder.path();
    std::ofstream(folder.file("x")) << "x";
    EXPECT_TRUE(std::filesystem::exists(path / "x"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace moonpool::test
