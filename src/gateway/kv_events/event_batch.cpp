#include "gateway/kv_events/event_batch.h"

#include <array>
#include <span>
#include <utility>

#include "gateway/hash_bytes.h"
#include "gateway/kv_events/msgpack.h"

namespace moonpool::gateway {

namespace {

using Kind = MsgpackItem::Kind;

constexpr std::uint64_t kNameSeed = 0x6E616D65;
constexpr std::uint64_t kOtherSeed = 0x6F74686572;

// The fields of all events by name, and where older versions have them in an array (behind the type).
enum class Field { kHashes, kParent, kTokens, kBlockSize, kLoraId, kMedium, kLoraName, kExtraKeys, kGroup, kKind, kOther };
constexpr std::array<std::pair<std::string_view, Field>, 10> kNames{{{"block_hashes", Field::kHashes},
                                                                     {"parent_block_hash", Field::kParent},
                                                                     {"token_ids", Field::kTokens},
                                                                     {"block_size", Field::kBlockSize},
                                                                     {"lora_id", Field::kLoraId},
                                                                     {"medium", Field::kMedium},
                                                                     {"lora_name", Field::kLoraName},
                                                                     {"extra_keys", Field::kExtraKeys},
                                                                     {"group_idx", Field::kGroup},
                                                                     {"kv_cache_spec_kind", Field::kKind}}};
constexpr std::array kStoredOrder{Field::kHashes, Field::kParent,   Field::kTokens,    Field::kBlockSize, Field::kLoraId,
                                  Field::kMedium, Field::kLoraName, Field::kExtraKeys, Field::kGroup,     Field::kKind};
constexpr std::array kRemovedOrder{Field::kHashes, Field::kMedium, Field::kGroup};

// All that any event may say.
struct Raw {
  KvBlocksStored stored;
  bool on_device = true;
  bool full_attention = true;
  bool has_extra_keys = false;
  std::optional<std::uint64_t> lora_id;
};

std::optional<std::uint64_t> hash_of(const MsgpackItem& item) {
  if (item.is_integer()) return item.number;
  if (item.kind == Kind::kBytes || item.kind == Kind::kText) return hash_bytes(item.bytes, 0);
  return std::nullopt;
}

bool read_hashes(MsgpackReader& reader, std::vector<std::uint64_t>& hashes) {
  const auto list = reader.next();
  if (!list) return false;
  if (list->kind == Kind::kNil) return true;
  if (list->kind != Kind::kArray) return false;
  hashes.reserve(list->number);
  for (std::uint64_t i = 0; i < list->number; ++i) {
    const auto item = reader.next();
    const auto hash = item ? hash_of(*item) : std::nullopt;
    if (!hash) return false;
    hashes.push_back(*hash);
  }
  return true;
}

bool read_tokens(MsgpackReader& reader, std::vector<std::uint32_t>& tokens) {
  const auto list = reader.next();
  if (!list || list->kind != Kind::kArray) return false;
  tokens.reserve(list->number);
  for (std::uint64_t i = 0; i < list->number; ++i) {
    const auto item = reader.next();
    if (!item || !item->is_integer()) return false;
    tokens.push_back(static_cast<std::uint32_t>(item->number));
  }
  return true;
}

// One block's: nil, or a list of names and of things that are told apart by their bytes.
bool read_extra(MsgpackReader& reader, std::uint64_t& extra) {
  const auto list = reader.next();
  if (!list) return false;
  if (list->kind == Kind::kNil) return true;
  if (list->kind != Kind::kArray) return false;
  for (std::uint64_t i = 0; i < list->number; ++i) {
    const std::string_view raw = reader.raw();
    if (raw.empty()) return false;
    const auto item = MsgpackReader(raw).next();
    extra = item && item->kind == Kind::kText ? kv_extra_of(item->bytes, extra) : hash_bytes(raw, extra ^ kOtherSeed);
  }
  return true;
}

bool read_extras(MsgpackReader& reader, Raw& raw) {
  const auto list = reader.next();
  if (!list) return false;
  if (list->kind == Kind::kNil) return true;
  if (list->kind != Kind::kArray) return false;
  raw.has_extra_keys = true;
  raw.stored.extra.reserve(list->number);
  for (std::uint64_t i = 0; i < list->number; ++i) {
    std::uint64_t extra = 0;
    if (!read_extra(reader, extra)) return false;
    raw.stored.extra.push_back(extra);
  }
  return true;
}

bool is_full_attention(std::string_view kind) {
  return kind == "full_attention" || kind == "mla_attention" || kind == "sink_full_attention" || kind == "unknown";
}

// False where the value cannot be what the field means. Nil is the default of every field that may be absent.
bool read_field(MsgpackReader& reader, Field field, Raw& raw) {
  switch (field) {
    case Field::kHashes:
      return read_hashes(reader, raw.stored.hashes);
    case Field::kTokens:
      return read_tokens(reader, raw.stored.tokens);
    case Field::kExtraKeys:
      return read_extras(reader, raw);
    case Field::kOther:
      return reader.skip();
    default:
      break;
  }
  const auto item = reader.next();
  if (!item) return false;
  if (item->kind == Kind::kNil) return field != Field::kBlockSize;
  switch (field) {
    case Field::kParent:
      raw.stored.parent = hash_of(*item);
      return raw.stored.parent.has_value();
    case Field::kBlockSize:
      raw.stored.block_size = static_cast<std::uint32_t>(item->number);
      return item->kind == Kind::kUnsigned && item->number > 0 && item->number <= 1U << 20;
    case Field::kLoraId:
      raw.lora_id = item->number;
      return item->is_integer();
    case Field::kGroup:
      raw.stored.group = item->number;
      return item->is_integer();
    case Field::kMedium:
      raw.on_device = item->bytes == "GPU";
      return item->kind == Kind::kText;
    case Field::kLoraName:
      raw.stored.adapter = std::string(item->bytes);
      return item->kind == Kind::kText;
    default:  // kKind
      raw.full_attention = is_full_attention(item->bytes);
      return item->kind == Kind::kText;
  }
}

// Its type, and its fields in `raw`; empty where it is none.
std::string_view read_event(MsgpackReader& reader, Raw& raw) {
  const auto head = reader.next();
  if (!head || head->number == 0) return {};
  std::string_view type;
  if (head->kind == Kind::kArray) {
    const auto tag = reader.next();
    if (!tag || tag->kind != Kind::kText) return {};
    type = tag->bytes;
    const std::span<const Field> order = type == "BlockStored"    ? std::span<const Field>(kStoredOrder)
                                         : type == "BlockRemoved" ? std::span<const Field>(kRemovedOrder)
                                                                  : std::span<const Field>();
    for (std::uint64_t i = 0; i + 1 < head->number; ++i) {
      if (!read_field(reader, i < order.size() ? order[i] : Field::kOther, raw)) return {};
    }
    return type;
  }
  if (head->kind != Kind::kMap) return {};
  for (std::uint64_t i = 0; i < head->number; ++i) {
    const auto key = reader.next();
    if (!key || key->kind != Kind::kText) return {};
    if (key->bytes == "type") {
      const auto tag = reader.next();
      if (!tag || tag->kind != Kind::kText) return {};
      type = tag->bytes;
      continue;
    }
    Field field = Field::kOther;
    for (const auto& [name, one] : kNames) {
      if (name == key->bytes) field = one;
    }
    if (!read_field(reader, field, raw)) return {};
  }
  return type;
}

Status malformed(const char* what) { return Status(ErrorCode::kProtocol, std::string("no batch of KV events: ") + what); }

Status finish_stored(Raw& raw) {
  KvBlocksStored& stored = raw.stored;
  if (stored.block_size == 0) return malformed("a stored block has no size");
  // Blocks that are not in the cache have no hash, and then nobody says where theirs begin.
  if (stored.tokens.size() != stored.hashes.size() * stored.block_size) {
    stored.hashes.clear();
    stored.tokens.clear();
  }
  if (!raw.has_extra_keys) {
    std::uint64_t extra = 0;
    if (!stored.adapter.empty()) {
      extra = kv_extra_of(stored.adapter);
    } else if (raw.lora_id) {
      extra = kOtherSeed + *raw.lora_id;  // a version that does not name its adapters
    }
    stored.extra.assign(stored.hashes.size(), extra);
  }
  stored.extra.resize(stored.hashes.size());
  return Status();
}

}  // namespace

std::uint64_t kv_extra_of(std::string_view name, std::uint64_t before) { return hash_bytes(name, before ^ kNameSeed); }

Result<std::vector<KvEvent>> parse_kv_event_batch(std::string_view payload) {
  MsgpackReader reader(payload);
  const auto batch = reader.next();
  if (!batch || batch->kind != Kind::kArray || batch->number < 2) return malformed("an array of time and events was expected");
  if (!reader.skip()) return malformed("it has no time");
  const auto list = reader.next();
  if (!list || list->kind != Kind::kArray) return malformed("it has no list of events");
  std::vector<KvEvent> events;
  for (std::uint64_t i = 0; i < list->number; ++i) {
    Raw raw;
    const std::string_view type = read_event(reader, raw);
    if (type.empty()) return malformed("an event is neither a map nor an array with its type, or a field has another type than it should");
    if (type == "AllBlocksCleared") events.emplace_back(KvAllCleared{});
    if (!raw.on_device) continue;
    if (type == "BlockRemoved") events.emplace_back(KvBlocksRemoved{std::move(raw.stored.hashes), raw.stored.group});
    if (type != "BlockStored" || !raw.full_attention) continue;
    if (Status status = finish_stored(raw); !status.ok()) return status;
    if (!raw.stored.hashes.empty()) events.emplace_back(std::move(raw.stored));
  }
  return events;
}

}  // namespace moonpool::gateway
