#include "metadata/metadata_url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "metadata/base64.h"
#include "metadata/etcd_reply.h"
#include "metadata/open_metadata_store.h"

namespace moonpool::metadata {
namespace {

using net::Endpoint;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

MetadataUrl parsed(std::string_view text) {
  auto url = parse_metadata_url(text);
  EXPECT_TRUE(url.ok()) << text << ": " << url.status().to_string();
  return url ? *url : MetadataUrl{};
}

TEST(MetadataUrlTest, AcceptsEveryEtcdForm) {
  for (const char* text : {"192.168.0.137:2379", "etcd://192.168.0.137:2379", "etcd://192.168.0.137", " etcd://192.168.0.137:2379/\n",
                           "ETCD://192.168.0.137:2379", "etcd://http://192.168.0.137:2379"}) {
    const auto url = parsed(text);
    EXPECT_EQ(url.kind, MetadataKind::kEtcd) << text;
    EXPECT_THAT(url.endpoints, ElementsAre(Endpoint{"192.168.0.137", 2379})) << text;
  }
  for (const char* text : {"etcd://h1:2379,h2:2380", "h1:2379,h2:2380", "h1:2379, h2:2380", "h1:2379,http://h2:2380"}) {
    const auto url = parsed(text);
    EXPECT_THAT(url.endpoints, ElementsAre(Endpoint{"h1", 2379}, Endpoint{"h2", 2380})) << text;
    EXPECT_EQ(url.to_string(), "etcd://h1:2379,h2:2380");
  }
  EXPECT_THAT(parsed("etcd://[fd00::1]:2379,h2").endpoints, ElementsAre(Endpoint{"fd00::1", 2379}, Endpoint{"h2", 2379}));
}

TEST(MetadataUrlTest, AcceptsHttp) {
  const auto url = parsed("http://192.168.0.137:8080/metadata");
  EXPECT_EQ(url.kind, MetadataKind::kHttp);
  EXPECT_EQ(url.path, "/metadata");
  EXPECT_EQ(url.to_string(), "http://192.168.0.137:8080/metadata");
  EXPECT_EQ(parsed("http://[::1]:8080/metadata").endpoints.front(), (Endpoint{"::1", 8080}));
}

TEST(MetadataUrlTest, AcceptsRedis) {
  const auto plain = parsed("redis://192.168.0.137:6379");
  EXPECT_EQ(plain.kind, MetadataKind::kRedis);
  EXPECT_EQ(plain.database, 0);
  EXPECT_TRUE(plain.password.empty());
  const auto full = parsed("redis://:s%2Fecret@h:7000/5");
  EXPECT_EQ(full.password, "s/ecret");
  EXPECT_EQ(full.database, 5);
  EXPECT_EQ(full.to_string(), "redis://h:7000/5");
  EXPECT_EQ(parsed("redis://me:a@b@h").user, "me");
  EXPECT_EQ(parsed("redis://me:a@b@h").password, "a@b");
  EXPECT_EQ(parsed("redis://h").endpoints.front(), (Endpoint{"h", 6379}));
  EXPECT_EQ(parsed("redis://h/").database, 0);
}

TEST(MetadataUrlTest, PeerToPeerIsAKindOfItsOwn) {
  EXPECT_EQ(parsed("P2PHANDSHAKE").kind, MetadataKind::kPeerToPeer);
  EXPECT_EQ(parsed("P2PHANDSHAKE").to_string(), "P2PHANDSHAKE");
  EXPECT_EQ(open_metadata_store("P2PHANDSHAKE").code(), ErrorCode::kInvalidParams);
}

TEST(MetadataUrlTest, ABadOneNamesTheRightForms) {
  for (const char* text : {"",
                           "  ",
                           "host",
                           "p2phandshake",
                           "etcd://",
                           "etcd://h:0",
                           "etcd://h1:1,,h2:2",
                           "etcd://h:2379/path",
                           "h:2379,",
                           "h:x",
                           "http://h:2379",
                           "http://h:2379/",
                           "http://h/metadata?key=1",
                           "https://h/metadata",
                           "ftp://h:21",
                           "redis://",
                           "redis://h/x",
                           "redis://h/-1",
                           "redis://nocolon@h",
                           "redis://:@h",
                           "redis://:%zz@h",
                           "rediss://h",
                           "://",
                           "etcd://u:p@h:1",
                           "fd00::1:2379"}) {
    const auto url = parse_metadata_url(text);
    ASSERT_EQ(url.code(), ErrorCode::kConfig) << text;
    for (const char* form : {"http://host:8080/metadata", "etcd://host:2379", "redis://[:password@]host:6379[/db]", "P2PHANDSHAKE"}) {
      EXPECT_THAT(url.status().message(), HasSubstr(form)) << text;
    }
  }
  EXPECT_THAT(parse_metadata_url("http://h:2379").status().message(), HasSubstr("etcd://h:2379"));
}

TEST(MetadataUrlTest, NoErrorShowsAPassword) {
  for (const char* text :
       {"redis://:hunter2@h:x", "redis://:hunter2@h/x", "redis://:hunter2:6379", "redis://:hunter2%zz@h", "etcd://me:hunter2@h",
        "http://me:hunter2@h/metadata", "ftp://me:hunter2@h", "me:hunter2@h:2379", "rediss://:hunter2@h"}) {
    const auto url = parse_metadata_url(text);
    ASSERT_FALSE(url.ok()) << text;
    EXPECT_THAT(url.status().to_string(), Not(HasSubstr("hunter2"))) << text;
  }
  EXPECT_THAT(parsed("redis://:hunter2@h").to_string(), Not(HasSubstr("hunter2")));
}

TEST(Base64Test, RoundTripsAndRefusesOtherText) {
  // The examples of RFC 4648.
  EXPECT_EQ(base64_encode(""), "");
  EXPECT_EQ(base64_encode("f"), "Zg==");
  EXPECT_EQ(base64_encode("fo"), "Zm8=");
  EXPECT_EQ(base64_encode("foobar"), "Zm9vYmFy");
  std::string bytes;
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(base64_decode(base64_encode(bytes)), bytes);
    bytes += static_cast<char>(i * 7);
  }
  for (const char* bad : {"Z", "Zg=", "Zg", "Z===", "====", "Zm9v\n", "Zm 9", "=Zg="}) EXPECT_FALSE(base64_decode(bad).has_value()) << bad;
}

TEST(EtcdReplyTest, ReadsTheGatewaysHabitOfLeavingOutDefaults) {
  EXPECT_EQ(**parse_etcd_range(R"({"header":{},"kvs":[{"key":"Zg==","value":"Zm8="}],"count":"1"})"), "fo");
  EXPECT_EQ(**parse_etcd_range(R"({"header":{},"kvs":[{"key":"Zg=="}],"count":"1"})"), "");
  EXPECT_FALSE(parse_etcd_range(R"({"header":{"revision":"1"}})")->has_value());
  EXPECT_TRUE(*parse_etcd_delete(R"({"header":{},"deleted":"1"})"));
  EXPECT_FALSE(*parse_etcd_delete(R"({"header":{}})"));
}

TEST(EtcdReplyTest, RefusesWhatIsNotEtcd) {
  for (const char* body : {"", "null", "[]", "{}", "<html>", R"({"header":{},"kvs":{}})", R"({"header":{},"kvs":[1]})",
                           R"({"header":{},"kvs":[{"value":"?"}]})", R"({"header":{},"kvs":[{"value":1}]})"}) {
    EXPECT_EQ(parse_etcd_range(body).code(), ErrorCode::kProtocol) << body;
  }
  EXPECT_EQ(parse_etcd_delete(R"({"header":{},"deleted":[]})").code(), ErrorCode::kProtocol);
  EXPECT_EQ(etcd_error_text(R"({"error":"x","message":"no leader","code":14})"), "no leader");
  EXPECT_EQ(etcd_error_text("<html>"), "<html>");
}

}  // namespace
}  // namespace moonpool::metadata
