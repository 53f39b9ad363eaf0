// The lean messages against the generated classes, both ways, and against bytes that are no message.
#include "net/lean_codec.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

#include "net/object_messages.h"
#include "wire.pb.h"

namespace moonpool::net::lean {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// What a generated message becomes on the way through its lean form.
template <typename Lean>
std::string through(const std::string& encoded) {
  Lean message;
  EXPECT_TRUE(parse(bytes_of(encoded), message));
  std::string again;
  write(message, again);
  EXPECT_EQ(again.size(), size_of(message));
  return again;
}

// Values whose encodings have every length.
class Values {
 public:
  explicit Values(unsigned seed) : random_(seed) {}
  std::uint64_t number() { return std::uint64_t{random_()} >> (random_() % 64); }
  std::uint32_t small() { return static_cast<std::uint32_t>(number()); }
  std::int32_t signed_number() { return static_cast<std::int32_t>(number()); }
  bool flag() { return random_() % 2 == 0; }
  int count() { return flag() ? 0 : static_cast<int>(random_() % 40); }
  std::string bytes() {
    std::string text(random_() % 300, '\0');
    for (char& c : text) c = static_cast<char>(random_());
    return text;
  }
  std::string text() { return "t" + std::to_string(number()); }

 private:
  std::mt19937_64 random_;
};

TEST(LeanCodec, EveryHotMessageHasTheSameBytesAsItsGeneratedClass) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    Values v(seed);
    wire::PutStartRequest start;
    start.set_node_id(v.bytes());
    start.set_tenant(v.text());
    for (int i = v.count(); i > 0; --i) start.add_key(v.bytes());
    for (int i = v.count(); i > 0; --i) start.add_size(v.number());
    start.set_replica_num(v.small());
    for (int i = v.count(); i > 0; --i) start.add_preferred_segment(v.text());
    start.set_prefer_same_node(v.flag());
    start.set_soft_pin(v.flag());
    start.set_soft_pin_ttl_ms(v.number());
    start.set_hard_pin(v.flag());
    start.set_upsert(v.flag());
    for (int i = v.count(); i > 0; --i) start.add_group(v.text());
    start.set_data_type(v.small());
    EXPECT_EQ(through<PutStartRequest>(start.SerializeAsString()), start.SerializeAsString());

    wire::PutStartReply granted;
    granted.set_term(v.number());
    for (int i = v.count(); i > 0; --i) granted.add_status(v.signed_number());
    for (int i = v.count(); i > 0; --i) granted.add_version_count(v.number());
    for (int i = v.count(); i > 0; --i) {
      auto& info = *granted.add_segment();
      info.set_incarnation(v.bytes());
      info.set_name(v.text());
      info.set_host(v.text());
      info.set_port(v.small());
      info.set_size(v.number());
      info.set_base(v.number());
      info.set_protocol(v.text());
      info.set_node_id(v.bytes());
      EXPECT_EQ(through<SegmentInfo>(info.SerializeAsString()), info.SerializeAsString());
    }
    for (int i = v.count(); i > 0; --i) granted.add_replica_count(v.small());
    for (int i = v.count(); i > 0; --i) granted.add_replica_segment(v.small());
    for (int i = v.count(); i > 0; --i) granted.add_replica_offset(v.number());
    EXPECT_EQ(through<PutStartReply>(granted.SerializeAsString()), granted.SerializeAsString());

    wire::PutCommitRequest commit;
    commit.set_node_id(v.bytes());
    commit.set_term(v.number());
    for (int i = v.count(); i > 0; --i) commit.add_key(v.bytes());
    for (int i = v.count(); i > 0; --i) commit.add_version_count(v.number());
    for (int i = v.count(); i > 0; --i) commit.add_checksum(v.number());
    for (int i = v.count(); i > 0; --i) commit.add_written(v.small());
    EXPECT_EQ(through<PutCommitRequest>(commit.SerializeAsString()), commit.SerializeAsString());

    wire::StatusReply status;
    for (int i = v.count(); i > 0; --i) status.add_status(v.signed_number());
    for (int i = v.count(); i > 0; --i) status.add_fenced(v.bytes());
    EXPECT_EQ(through<StatusReply>(status.SerializeAsString()), status.SerializeAsString());

    wire::ExistRequest exist;
    exist.set_tenant(v.text());
    for (int i = v.count(); i > 0; --i) exist.add_key(v.bytes());
    exist.set_wait_ms(v.small());
    EXPECT_EQ(through<ExistRequest>(exist.SerializeAsString()), exist.SerializeAsString());

    wire::GetReplicasReply found;
    for (int i = v.count(); i > 0; --i) found.add_status(v.signed_number());
    for (int i = v.count(); i > 0; --i) found.add_size(v.number());
    for (int i = v.count(); i > 0; --i) found.add_checksum(v.number());
    for (int i = v.count(); i > 0; --i) found.add_version_term(v.number());
    for (int i = v.count(); i > 0; --i) found.add_version_count(v.number());
    for (int i = v.count(); i > 0; --i) found.add_replica_offset(v.number());
    found.set_lease_ms(v.small());
    EXPECT_EQ(through<GetReplicasReply>(found.SerializeAsString()), found.SerializeAsString());

    wire::WriteRequest write_request;
    for (int i = v.count(); i > 0; --i) write_request.add_incarnation(v.bytes());
    for (int i = v.count(); i > 0; --i) write_request.add_segment(v.small());
    for (int i = v.count(); i > 0; --i) write_request.add_length(v.number());
    for (int i = v.count(); i > 0; --i) write_request.add_key(v.bytes());
    write_request.set_checksum_chunk(v.small());
    EXPECT_EQ(through<WriteRequest>(write_request.SerializeAsString()), write_request.SerializeAsString());

    wire::ReadReply read_reply;
    for (int i = v.count(); i > 0; --i) read_reply.add_status(v.signed_number());
    read_reply.set_checksum_chunk(v.small());
    for (int i = v.count(); i > 0; --i) read_reply.add_checksum(v.number());
    EXPECT_EQ(through<ReadReply>(read_reply.SerializeAsString()), read_reply.SerializeAsString());
  }
}

TEST(LeanCodec, AMessageIsReusedWithoutTracesOfTheLastOne) {
  wire::ExistRequest one;
  one.set_node_id("node");
  one.set_wait_ms(7);
  one.add_key("a");
  one.add_key("b");
  ExistRequest message;
  const std::string first = one.SerializeAsString();
  ASSERT_TRUE(parse(bytes_of(first), message));
  EXPECT_EQ(message.key, (Keys{"a", "b"}));
  ASSERT_TRUE(parse({}, message));
  EXPECT_TRUE(message.key.empty());
  EXPECT_TRUE(message.node_id.empty());
  EXPECT_EQ(message.wait_ms, 0U);
}

TEST(LeanCodec, UnknownFieldsUnpackedColumnsAndWrongTypesAreReadAsProtobufReadsThem) {
  const std::string known("\x1A\x01k\x20\x05", 5);  // key "k", wait_ms 5
  const std::string strange[] = {
      std::string("\xF8\x01\x09", 3),                                // field 31, varint
      std::string("\xF9\x01zzzzzzzz", 10),                           // field 31, fixed64
      std::string("\xFD\x01zzzz", 6),                                // field 31, fixed32
      std::string("\xFA\x01\x02zz", 5),                              // field 31, bytes
      std::string("\xFB\x01\x1A\x01x\xF3\x01\xF4\x01\xFC\x01", 11),  // field 31, a group with another in it
      std::string("\x18\x07", 2),                                    // field 3 is no varint
      std::string("\x22\x01z", 3),                                   // field 4 is no bytes
  };
  for (const auto& extra : strange) {
    const std::string encoded = extra + known + extra;
    wire::ExistRequest generated;
    ASSERT_TRUE(generated.ParseFromString(encoded));
    ExistRequest message;
    ASSERT_TRUE(parse(bytes_of(encoded), message));
    EXPECT_EQ(message.key, (Keys{"k"}));
    EXPECT_EQ(message.wait_ms, 5U);
  }
  // A column may come element by element, and in several packed parts.
  const std::string unpacked("\x08\x01\x08\x02\x0A\x02\x03\x04", 8);
  wire::ExistReply generated;
  ASSERT_TRUE(generated.ParseFromString(unpacked));
  ExistReply message;
  ASSERT_TRUE(parse(bytes_of(unpacked), message));
  EXPECT_EQ(message.status, (std::vector<std::int32_t>(generated.status().begin(), generated.status().end())));
}

TEST(LeanCodec, WhatIsNoMessageIsRefused) {
  wire::PutCommitRequest whole;
  whole.set_node_id("0123456789abcdef");
  whole.set_term(1ULL << 40);
  for (int i = 0; i < 3; ++i) {
    whole.add_key("key");
    whole.add_version_count(1ULL << 50);
    whole.add_checksum(~0ULL);
    whole.add_written(300);
  }
  const std::string encoded = whole.SerializeAsString();
  PutCommitRequest message;
  ASSERT_TRUE(parse(bytes_of(encoded), message));
  for (std::size_t length = 0; length < encoded.size(); ++length) {
    const std::string cut = encoded.substr(0, length);
    EXPECT_EQ(parse(bytes_of(cut), message), wire::PutCommitRequest().ParseFromString(cut)) << length;
  }
  EXPECT_FALSE(parse(bytes_of(std::string("\x00\x01", 2)), message)) << "field 0";
  EXPECT_FALSE(parse(bytes_of("\x0C"), message)) << "the end of a group that has not begun";
  EXPECT_FALSE(parse(bytes_of("\x0B\x14"), message)) << "the end of another group";
  EXPECT_FALSE(parse(bytes_of("\x0F"), message)) << "wire type 7";
  EXPECT_FALSE(parse(bytes_of("\x32\x07zzzzzzz"), message)) << "a fixed64 column of 7 bytes";
  EXPECT_FALSE(parse(bytes_of(std::string("\x18") + std::string(11, '\xFF')), message)) << "a varint without end";
}

TEST(LeanCodec, RandomBytesAreJudgedAsProtobufJudgesThem) {
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    wire::GetReplicasReply seedling;
    for (int i = 0; i < 3; ++i) {
      seedling.add_status(-704);
      seedling.add_size(4096);
      seedling.add_checksum(random());
      seedling.add_segment()->set_port(9);
    }
    std::string encoded = seedling.SerializeAsString();
    for (unsigned flips = 1 + random() % 4; flips > 0; --flips) encoded[random() % encoded.size()] = static_cast<char>(random());
    wire::GetReplicasReply generated;
    GetReplicasReply message;
    bool ours = parse(bytes_of(encoded), message);
    SegmentInfo info;
    for (const auto segment : message.segment) ours = ours && parse(std::as_bytes(std::span(segment)), info);
    // Only of `string` fields Protobuf asks more than we do: that they are UTF-8.
    if (generated.ParseFromString(encoded)) {
      EXPECT_TRUE(ours) << round;
      EXPECT_EQ(message.size, std::vector<std::uint64_t>(generated.size().begin(), generated.size().end()));
      EXPECT_EQ(message.lease_ms, generated.lease_ms());
    }
  }
}

}  // namespace
}  // namespace moonpool::net::lean
