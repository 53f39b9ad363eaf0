#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/command_table.h"
#include "cli/status.h"

namespace moonpool::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Dispatch : public testing::Test {
 protected:
  int call(std::vector<std::string> words) {
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    return dispatch(commands_, "1.2.3", static_cast<int>(arguments.size()), arguments.data());
  }

  std::vector<std::string> seen_;
  std::vector<Command> commands_ = {
      {"master", "mooncake_master", "runs a master",
       [this](int argc, char** argv) {
         seen_.assign(argv, argv + argc);
         return 7;
       }},
      {"status", "", "shows a master", [](int, char**) { return 0; }},
  };
};

TEST_F(Dispatch, FirstArgumentChoosesTheCommandWhichSeesItsOwnArguments) {
  EXPECT_EQ(call({"/usr/bin/moonpool", "master", "--port", "1"}), 7);
  EXPECT_THAT(seen_, ElementsAre("moonpool master", "--port", "1"));
}

TEST_F(Dispatch, TheNameItIsCalledByChoosesTheCommand) {
  EXPECT_EQ(call({"/venv/bin/mooncake_master", "-port=1"}), 7);
  EXPECT_THAT(seen_, ElementsAre("mooncake_master", "-port=1"));
}

TEST_F(Dispatch, AnUnknownCommandNamesTheNearest) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(call({"moonpool", "mastre"}), 2);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("did you mean 'master'?"));
}

TEST_F(Dispatch, AWordFarFromEveryCommandGetsNoGuess) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(call({"moonpool", "xyzzy"}), 2);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::Not(HasSubstr("did you mean")));
}

TEST_F(Dispatch, NoCommandShowsTheHelpAsAnError) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(call({"moonpool"}), 2);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("also: mooncake_master"));
}

TEST_F(Dispatch, VersionAndHelpAreAnswers) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(call({"moonpool", "--version"}), 0);
  EXPECT_EQ(call({"moonpool", "--help"}), 0);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("moonpool 1.2.3\n"));
}

TEST(FormatStatus, ShowsFieldsNestedOnesAndBytesInUnits) {
  const auto text = format_status(R"({"term": 5, "used_bytes": 3145728, "segments": [{"name": "a:1", "healthy": true}], "nodes": []})");
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "term: 5\nused_bytes: 3145728  (3.00 MiB)\nsegments (1)\n  1\n    name: a:1\n    healthy: yes\nnodes: none\n");
}

TEST(FormatStatus, RefusesWhatIsNoJsonObject) {
  EXPECT_EQ(format_status("<html>").code(), ErrorCode::kProtocol);
  EXPECT_EQ(format_status("[1]").code(), ErrorCode::kProtocol);
}

TEST(FormatStatus, LetsNoControlCharactersThrough) {
  const auto text = format_status("{\"name\": \"a\\u001b[2J\"}");
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "name: a?[2J\n");
}

}  // namespace
}  // namespace moonpool::cli
