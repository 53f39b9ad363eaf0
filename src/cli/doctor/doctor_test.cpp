// The frame around the checks: settings, how findings are shown, how checks run, what Python says.
#include "cli/doctor/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <condition_variable>
#include <fstream>
#include <mutex>

#include "base/version.h"
#include "cli/doctor/findings_for_test.h"
#include "cli/doctor/software_checks.h"
#include "tests/support/test_support.h"

namespace moonpool::cli::doctor {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string text_of(const boost::json::value& value) { return boost::json::value_to<std::string>(value); }

// ------------------------------------------------------------------------------------------------ how findings are shown

const std::vector<Section> kSections = {{"rdma", {ok("mlx5_0 is up"), error("mlx5_1 is \033[31mdown\n", "plug it in")}},
                                        {"memory lock", {note("unlimited")}}};

TEST(Findings, AreOneLineEachWithTheRemedyUnderIt) {
  EXPECT_EQ(as_text(kSections, false),
            "ok       rdma         mlx5_0 is up\n"
            "error    rdma         mlx5_1 is ?[31mdown?\n"
            "           what to do: plug it in\n"
            "note     memory lock  unlimited\n"
            "doctor: 1 error, 0 warnings, 1 note, 1 ok\n");
}

TEST(Findings, HaveColourOnlyWhenAsked) {
  EXPECT_THAT(as_text(kSections, true), HasSubstr("\033[1;31merror  \033[0m"));
  EXPECT_THAT(as_text(kSections, false), Not(HasSubstr("\033")));
}

TEST(Findings, AreOneDocumentForMachines) {
  const auto document = boost::json::parse(as_json(kSections, milliseconds(1500))).as_object();
  EXPECT_EQ(text_of(document.at("status")), "error");
  EXPECT_EQ(text_of(document.at("version")), version());
  EXPECT_EQ(document.at("seconds").as_double(), 1.5);
  EXPECT_EQ(document.at("counts").at("ok").to_number<int>(), 1);
  EXPECT_EQ(document.at("counts").at("warning").to_number<int>(), 0);
  const auto& findings = document.at("findings").as_array();
  ASSERT_EQ(findings.size(), 3U);
  EXPECT_EQ(text_of(findings[1].at("check")), "rdma");
  EXPECT_EQ(text_of(findings[1].at("level")), "error");
  EXPECT_EQ(text_of(findings[1].at("remedy")), "plug it in");
  EXPECT_FALSE(findings[0].as_object().contains("remedy"));
}

TEST(Findings, TheGravestCounts) {
  EXPECT_EQ(gravest(kSections), Level::kError);
  EXPECT_EQ(gravest({}), Level::kOk);
}

// ------------------------------------------------------------------------------------------------ how checks run

TEST(RunChecks, OneThatHangsIsReportedAndTheOthersAreThereByTheDeadline) {
  struct Gate {
    std::mutex mutex;
    std::condition_variable changed;
    bool open = false;
    bool left = false;
  };
  const auto gate = std::make_shared<Gate>();
  std::vector<Check> checks = {{"hangs",
                                [gate](Deadline) -> Findings {
                                  std::unique_lock lock(gate->mutex);
                                  gate->changed.wait(lock, [&] { return gate->open; });
                                  gate->left = true;
                                  gate->changed.notify_all();
                                  return {ok("too late")};
                                }},
                               {"fine", [](Deadline) -> Findings { return {ok("well")}; }}};
  const auto start = Deadline::Clock::now();
  const Outcome outcome = run_checks(std::move(checks), Deadline::after(milliseconds(300)));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(20));
  EXPECT_FALSE(outcome.all_ended);
  ASSERT_EQ(outcome.sections.size(), 2U);
  EXPECT_EQ(outcome.sections[0].check, "hangs");
  EXPECT_THAT(outcome.sections[0].findings, ElementsAre(finds(Level::kError, "did not end within")));
  EXPECT_THAT(outcome.sections[1].findings, ElementsAre(finds(Level::kOk, "well")));
  std::unique_lock lock(gate->mutex);
  gate->open = true;
  gate->changed.notify_all();
  gate->changed.wait(lock, [&] { return gate->left; });
}

TEST(RunChecks, RunSideBySide) {
  // Each waits for the other, so that one after the other would end with the deadline only.
  struct Meeting {
    std::mutex mutex;
    std::condition_variable changed;
    int here = 0;
  };
  const auto meeting = std::make_shared<Meeting>();
  const auto meet = [meeting](Deadline deadline) -> Findings {
    std::unique_lock lock(meeting->mutex);
    ++meeting->here;
    meeting->changed.notify_all();
    // The system clock, for the same reason as in check.cpp.
    const auto until = std::chrono::system_clock::now() + deadline.left();
    const bool met = meeting->changed.wait_until(lock, until, [&] { return meeting->here == 2; });
    return {met ? ok("met") : error("alone", "")};
  };
  const Outcome outcome = run_checks({{"one", meet}, {"two", meet}}, Deadline::after(seconds(20)));
  EXPECT_TRUE(outcome.all_ended);
  EXPECT_EQ(gravest(outcome.sections), Level::kOk);
}

// ------------------------------------------------------------------------------------------------ settings

constexpr const char* kGuide = R"({"local_hostname": "192.168.0.137", "metadata_server": "etcd://192.168.0.137:2379", "protocol": "RDMA",
  "device_name": "erdma_0,erdma_1", "master_server_address": "192.168.0.137:50001"})";

TEST(PoolConfigFile, OfTheGuideIsRead) {
  const auto config = parse_pool_config(kGuide, "mooncake.json");
  ASSERT_TRUE(config.ok()) << config.status().to_string();
  EXPECT_EQ(config->local_hostname, "192.168.0.137");
  EXPECT_EQ(config->protocol, "rdma");
  EXPECT_EQ(config->segment_bytes, 3'355'443'200U) << "the default of mooncake.mooncake_config";
  EXPECT_THAT(config->unknown_fields, IsEmpty());
  Settings settings;
  settings.config = *config;
  EXPECT_THAT(settings.devices(), ElementsAre("erdma_0", "erdma_1"));
  EXPECT_THAT(settings.masters(), ElementsAre("192.168.0.137:50001"));
  EXPECT_TRUE(settings.wants_rdma());
  settings.request.master = "a:1, b:2";
  settings.request.metadata_server = "P2PHANDSHAKE";
  EXPECT_THAT(settings.masters(), ElementsAre("a:1", "b:2")) << "a flag wins";
  EXPECT_EQ(settings.metadata_server(), "P2PHANDSHAKE");
  settings.config->device_name = "auto";
  EXPECT_THAT(settings.devices(), IsEmpty());
}

TEST(PoolConfigFile, SizesAndAliasesAreThoseOfThePythonModule) {
  const auto config = parse_pool_config(R"({"local_hostname": "h", "metadata_server": "P2PHANDSHAKE", "master_server_addr": "m:1",
    "global_segment_size": "4 GB", "local_buffer_size": 1048576, "rdma_devices": " mlx5_0 ", "enable_client_http_server": true,
    "client_http_port": 9400, "replica_num": 2, "protocl": "rdma"})",
                                        "f");
  ASSERT_TRUE(config.ok()) << config.status().to_string();
  EXPECT_EQ(config->segment_bytes, std::uint64_t{4} << 30);
  EXPECT_EQ(config->local_buffer_bytes, 1U << 20);
  EXPECT_EQ(config->device_name, "mlx5_0");
  EXPECT_EQ(config->client_http_port, 9400);
  EXPECT_THAT(config->unknown_fields, ElementsAre("protocl"));
}

TEST(PoolConfigFile, WrongOnesSayWhereAndWhatIsRight) {
  const auto wrong = [](const char* text) {
    const auto config = parse_pool_config(text, "m.json");
    EXPECT_EQ(config.code(), ErrorCode::kConfig);
    return config.status().message();
  };
  EXPECT_THAT(wrong("{"), HasSubstr("m.json: not valid JSON"));
  EXPECT_THAT(wrong("[]"), HasSubstr("one JSON object"));
  EXPECT_THAT(wrong("{}"), HasSubstr("\"local_hostname\" is missing"));
  EXPECT_THAT(wrong(R"({"local_hostname": 5})"), HasSubstr("local_hostname: give a text"));
  EXPECT_THAT(wrong(R"({"global_segment_size": "much"})"), HasSubstr("global_segment_size: give a number of bytes"));
  EXPECT_THAT(wrong(R"({"global_segment_size": -1})"), HasSubstr("global_segment_size"));
}

TEST(GatherSettings, TheFlagsFileWinsOverTheEnvironmentsAndThatOverItsVariables) {
  const test::TempDir folder;
  std::ofstream(folder.file("one.json")) << kGuide;
  Environment environment;
  environment.master = "10.0.0.1:50051";
  environment.global_segment_size = "1GB";
  environment.token = "secret";
  Settings settings = gather({}, environment);
  ASSERT_TRUE(settings.config.has_value()) << settings.config_error.to_string();
  EXPECT_EQ(settings.config->master_server_address, "10.0.0.1:50051");
  EXPECT_EQ(settings.config->segment_bytes, 1U << 30);
  EXPECT_EQ(settings.token, "secret");
  environment.config_path = folder.file("missing.json");
  settings = gather({}, environment);
  EXPECT_FALSE(settings.config.has_value());
  EXPECT_THAT(settings.config_error.message(), HasSubstr("missing.json cannot be read (No such file or directory"));
  EXPECT_THAT(check_configuration(settings), Contains(finds(Level::kError, "missing.json")));
  Request request;
  request.config_path = folder.file("one.json");
  settings = gather(request, environment);
  ASSERT_TRUE(settings.config.has_value());
  EXPECT_EQ(settings.config->source, folder.file("one.json"));
  request.config_path = folder.path().string();
  EXPECT_THAT(gather(request, environment).config_error.message(), HasSubstr("is a folder"));
}

TEST(CheckConfiguration, AWrongVariableOfRdmaIsAnError) {
  Environment environment;
  environment.rdma = {{"MOONPOOL_RDMA_MTU", "1500"}};
  EXPECT_THAT(check_configuration(gather({}, environment)), Contains(finds(Level::kError, "MOONPOOL_RDMA_MTU")));
  environment.rdma = {{"MOONPOOL_RDMA_MTU", "4096"}};
  EXPECT_THAT(check_configuration(gather({}, environment)), Not(Contains(finds(Level::kError, "MOONPOOL_RDMA_MTU"))));
}

TEST(GatherSettings, TheTokenMayLieInAFile) {
  const test::TempDir folder;
  std::ofstream(folder.file("token")) << "from a file\n";
  Environment environment;
  environment.token_file = folder.file("token");
  EXPECT_EQ(gather({}, environment).token, "from a file");
  environment.token_file = folder.file("none");
  const Settings settings = gather({}, environment);
  EXPECT_THAT(check_configuration(settings), Contains(finds(Level::kError, "MOONPOOL_CLUSTER_TOKEN_FILE")));
}

TEST(Configuration, AnotherProtocolAndUnknownFieldsAreFound) {
  Settings settings;
  EXPECT_THAT(check_configuration(settings), ElementsAre(finds(Level::kNote, "no configuration")));
  settings.config = PoolConfig{};
  settings.config->protocol = "efa";
  settings.config->unknown_fields = {"protocl"};
  EXPECT_THAT(check_configuration(settings),
              AllOf(Contains(finds(Level::kError, "protocol \"efa\"")), Contains(finds(Level::kWarning, "\"protocl\""))));
}

// ------------------------------------------------------------------------------------------------ Python and libraries

std::string script(const test::TempDir& folder, const std::string& text) {
  const std::string path = folder.file("python3");
  std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
  ::chmod(path.c_str(), 0755);
  return path;
}

TEST(Python, TheRealOneTellsItsVersion) {
  const auto text = ask_python("python3", Deadline::after(seconds(60)));
  ASSERT_TRUE(text.ok()) << text.status().to_string();
  const auto facts = parse_python_facts(*text);
  ASSERT_TRUE(facts.ok()) << facts.status().to_string();
  EXPECT_THAT(facts->version, testing::StartsWith("3."));
  EXPECT_THAT(facts->executable, HasSubstr("python"));
}

TEST(Python, OneThatHangsIsEndedInTimeWithWhatItStarted) {
  const test::TempDir folder;
  const auto start = Deadline::Clock::now();
  const auto text = ask_python(script(folder, "sleep 1000 & sleep 1000"), Deadline::after(milliseconds(200)));
  EXPECT_EQ(text.code(), ErrorCode::kRpcTimeout);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(60));
  const auto closed = ask_python(script(folder, "exec >&-; sleep 1000"), Deadline::after(milliseconds(200)));
  EXPECT_EQ(closed.code(), ErrorCode::kRpcTimeout) << "closing its output does not set it free";
}

TEST(Python, OneThatFailsOrIsMissingOrTalksNonsenseIsAnError) {
  const test::TempDir folder;
  EXPECT_THAT(ask_python(script(folder, "exit 3"), Deadline::after(seconds(60))).status().message(), HasSubstr("status 3"));
  EXPECT_EQ(ask_python(folder.file("none"), Deadline::after(seconds(60))).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(parse_python_facts("hello").code(), ErrorCode::kProtocol);
  EXPECT_EQ(parse_python_facts("").code(), ErrorCode::kProtocol);
  EXPECT_TRUE(parse_python_facts("noise of a module\n{\"version\": \"3.11.2\"}\n").ok());
}

TEST(Python, IsThatOfTheStarterElseOfTheEnvironmentElseBesideTheProgram) {
  const test::TempDir folder;
  std::filesystem::create_directories(folder.path() / "venv" / "bin");
  std::filesystem::create_directories(folder.path() / "venv" / "lib" / "python3" / "site-packages" / "moonpool" / "bin");
  const std::string python = (folder.path() / "venv" / "bin" / "python3").string();
  std::ofstream(python) << "";
  std::ofstream(folder.path() / "venv" / "pyvenv.cfg") << "";
  const std::string program = (folder.path() / "venv" / "lib" / "python3" / "site-packages" / "moonpool" / "bin" / "moonpool").string();
  EXPECT_EQ(choose_python("/x/python", folder.file("venv"), program), "/x/python");
  EXPECT_EQ(choose_python(std::nullopt, folder.file("venv"), "/y/moonpool"), python);
  EXPECT_EQ(choose_python(std::nullopt, folder.file("gone"), program), python);
  EXPECT_EQ(choose_python(std::nullopt, std::nullopt, "/y/moonpool"), "python3");
}

TEST(Python, WhatIsInstalledIsJudged) {
  PythonFacts facts;
  facts.version = "3.11.2";
  facts.vllm = "0.11.0";
  EXPECT_THAT(judge_python(facts, "1.0.0"), Contains(finds(Level::kNote, "the moonpool wheel is not installed")));
  facts.moonpool = "1.0.0";
  facts.module_file = "/v/mooncake/store.py";
  EXPECT_THAT(judge_python(facts, "1.0.0"), ElementsAre(finds(Level::kOk, "vLLM 0.11.0"), finds(Level::kOk, "/v/mooncake/store.py")));
  EXPECT_THAT(judge_python(facts, "1.1.0"), Contains(finds(Level::kWarning, "the moonpool wheel here is 1.0.0, and this program 1.1.0")));
  facts.import_error = "ImportError: libx.so";
  EXPECT_THAT(judge_python(facts, "1.0.0"), Contains(finds(Level::kError, "ImportError: libx.so")));
  facts.incumbent = "0.3.13";
  EXPECT_THAT(judge_python(facts, "1.0.0"), Contains(finds(Level::kError, "mooncake-transfer-engine 0.3.13")));
}

TEST(Python, AMissingHashSeedIsAWarningWhereVllmIs) {
  EXPECT_THAT(judge_hash_seed(std::nullopt, true), ElementsAre(finds(Level::kWarning, "PYTHONHASHSEED is not set")));
  EXPECT_THAT(judge_hash_seed("random", true), ElementsAre(finds(Level::kWarning, "not set")));
  EXPECT_THAT(judge_hash_seed(std::nullopt, false), ElementsAre(finds(Level::kNote, "not set")));
  EXPECT_THAT(judge_hash_seed("0", true), ElementsAre(finds(Level::kOk, "PYTHONHASHSEED=0")));
}

TEST(Libraries, AreOpenedAndTellTheirVersion) {
  const Library c = open_library("libc.so.6");
  EXPECT_TRUE(c.present);
  const Library none = open_library("libmoonpool-has-no-such.so.1");
  EXPECT_FALSE(none.present);
  EXPECT_THAT(none.error, HasSubstr("libmoonpool-has-no-such"));
  EXPECT_THAT(judge_libraries(none, none, none, true),
              ElementsAre(finds(Level::kError, "libibverbs cannot be opened"), finds(Level::kWarning, "librdmacm"),
                          finds(Level::kNote, "no CUDA driver")));
  EXPECT_THAT(judge_libraries(none, none, none, false), Not(Contains(Field(&Finding::level, Level::kError))));
  EXPECT_THAT(judge_libraries({true, "1.14.44.0", ""}, {true, "", ""}, {true, "550", ""}, true),
              ElementsAre(finds(Level::kOk, "libibverbs 1.14.44.0"), finds(Level::kOk, "librdmacm is there"), finds(Level::kOk, "CUDA")));
}

}  // namespace
}  // namespace moonpool::cli::doctor
