"""The callable surface of the incumbent's wheel (0.3.13): names, parameters, defaults, constants. Facts, in a form of our own.

One item a line. `class C`; below it `.property` and `method(parameter parameter=default ...)`, self left out; `enum E NAME=value ...`;
`const NAME value`; a function without indentation is the module's. What EP, PG, reshard and other areas out of scope have is not listed.
"""

STORE = """
const ACTIVATION ObjectDataType.ACTIVATION
class BufferHandle
    __len__()
    ptr()
    size()
class BufferLease
    .buffer
    .ptr
    release()
    .size
class BufferLeaseView
    .buffer
class BufferPool
    __init__(store max_bytes=0 min_size_class=65536 max_size_class=None alignment=8388608 block_on_exhaustion=True default_timeout=None max_regions=None prewarm_size=None prewarm_count=0)
    acquire(size block=None timeout=None)
    buffer(size block=None timeout=None)
    close()
    prewarm(size count)
const COMPLETE ReplicaStatus.COMPLETE
class Descriptor
    .buffer_address
    .size
    .transport_endpoint
class DiskDescriptor
    .file_path
    .object_size
const FAILED TaskStatus.FAILED
const GENERAL ObjectDataType.GENERAL
const GRADIENT ObjectDataType.GRADIENT
const INITIALIZED ReplicaStatus.INITIALIZED
const KVCACHE ObjectDataType.KVCACHE
const METADATA ObjectDataType.METADATA
class MemoryDescriptor
    .buffer_descriptor
class MooncakeDistributedStore
    alloc_from_mem_pool(arg0)
    allocate_and_mount_segment(size protocol='tcp' location='')
    batch_get_buffer(arg0)
    batch_get_into(keys buffer_ptrs sizes)
    batch_get_into_multi_buffer_ranges(keys all_buffer_ptrs all_sizes all_src_offsets)
    batch_get_into_multi_buffers(keys all_buffer_ptrs all_sizes prefer_alloc_in_same_node=False)
    batch_get_replica_desc(keys)
    batch_get_session_end(keys)
    batch_get_session_start(keys)
    batch_get_tensor(keys)
    batch_get_tensor_into(keys buffer_ptrs sizes)
    batch_get_tensor_into_cuda(keys tensors_list)
    batch_get_tensor_with_parallelism(keys targets=None)
    batch_get_tensor_with_parallelism_into(keys buffer_ptrs sizes targets=None)
    batch_get_tensor_with_tp(base_keys tp_rank=0 tp_size=1)
    batch_get_tensor_with_tp_into(base_keys buffer_ptrs sizes tp_rank=0 tp_size=1)
    batch_is_exist(keys)
    batch_pub_tensor(keys tensors_list config=ReplicateConfig())
    batch_pub_tensor_with_tp(base_keys tensors_list config=ReplicateConfig() tp_rank=0 tp_size=1 split_dim=0)
    batch_put_from(keys buffer_ptrs sizes config=ReplicateConfig())
    batch_put_from_multi_buffer_ranges(keys all_buffer_ptrs all_sizes all_dst_offsets)
    batch_put_from_multi_buffers(keys all_buffer_ptrs all_sizes config=ReplicateConfig())
    batch_put_session_end(keys)
    batch_put_session_revoke(keys)
    batch_put_session_start(keys sizes config=ReplicateConfig())
    batch_put_tensor(keys tensors_list)
    batch_put_tensor_from(keys buffer_ptrs sizes)
    batch_put_tensor_with_parallelism(keys tensors_list parallelisms=None config=ReplicateConfig() writer_partitions=None)
    batch_put_tensor_with_parallelism_from(keys buffer_ptrs sizes parallelisms=None config=ReplicateConfig() writer_partitions=None)
    batch_put_tensor_with_tp(base_keys tensors_list tp_rank=0 tp_size=1 split_dim=0)
    batch_put_tensor_with_tp_from(base_keys buffer_ptrs sizes tp_rank=0 tp_size=1 split_dim=0)
    batch_remove(keys force=False)
    batch_replica_clear(keys segment_name='')
    batch_upsert_from(keys buffer_ptrs sizes config=ReplicateConfig())
    batch_upsert_pub_tensor(keys tensors_list config=ReplicateConfig())
    batch_upsert_tensor(keys tensors_list)
    batch_upsert_tensor_from(keys buffer_ptrs sizes)
    batch_upsert_tensor_with_parallelism(keys tensors_list parallelisms=None config=ReplicateConfig() writer_partitions=None)
    batch_upsert_tensor_with_parallelism_from(keys buffer_ptrs sizes parallelisms=None config=ReplicateConfig() writer_partitions=None)
    close()
    create_copy_task(key targets)
    create_move_task(key source target)
    get(arg0)
    get_batch(arg0)
    get_buffer(arg0)
    get_hostname()
    get_into(key buffer_ptr size)
    get_into_ranges(buffer_ptrs all_keys all_dst_offsets all_src_offsets all_sizes)
    get_offload_rpc_read_count()
    get_replica_desc(key)
    get_size(arg0)
    get_tensor(key)
    get_tensor_into(key buffer_ptr size)
    get_tensor_into_cuda(key tensor)
    get_tensor_with_parallelism(key target=None)
    get_tensor_with_parallelism_into(key buffer_ptr size target=None)
    get_tensor_with_tp(key tp_rank=0 tp_size=1 split_dim=0)
    get_tensor_with_tp_into(key buffer_ptr size tp_rank=0 tp_size=1 split_dim=0)
    health_check()
    init_all(arg0 arg1 arg2)
    is_exist(arg0)
    load_tensor_from_safetensor(key=None file_name=None)
    mount_segment(path size offset=0 protocol='tcp' location='')
    pub_tensor(key tensor config=ReplicateConfig())
    pub_tensor_with_tp(key tensor config=ReplicateConfig() tp_rank=0 tp_size=1 split_dim=0)
    put(key value config=ReplicateConfig())
    put_batch(keys values config=ReplicateConfig())
    put_from(key buffer_ptr size config=ReplicateConfig())
    put_from_with_metadata(key buffer_ptr metadata_buffer_ptr size metadata_size config=ReplicateConfig())
    put_parts(key *args config=ReplicateConfig())
    put_tensor(key tensor)
    put_tensor_from(key buffer_ptr size)
    put_tensor_with_parallelism(key tensor parallelism=None config=ReplicateConfig() writer_partition=None)
    put_tensor_with_parallelism_from(key buffer_ptr size parallelism=None config=ReplicateConfig() writer_partition=None)
    put_tensor_with_tp(key tensor tp_rank=0 tp_size=1 split_dim=0)
    put_tensor_with_tp_from(key buffer_ptr size tp_rank=0 tp_size=1 split_dim=0)
    query_task(task_id)
    register_buffer(buffer_ptr size)
    remove(key force=False)
    remove_all(force=False)
    remove_by_regex(regex_pattern force=False)
    save_tensor_to_safetensor(key file_name=None)
    setup(local_hostname metadata_server global_segment_size local_buffer_size protocol rdma_devices master_server_addr engine=None enable_ssd_offload=False ssd_offload_path='' tenant_id='default' enable_client_http_server=False client_http_port=9300)
    setup_dummy(mem_pool_size local_buffer_size server_address)
    unmount_and_free_segment(segment_ids grace_period_seconds=0)
    unmount_local_disk_segment(grace_period_seconds=0)
    unmount_segment(segment_ids grace_period_seconds=0)
    unregister_buffer(buffer_ptr)
    upsert(key value config=ReplicateConfig())
    upsert_batch(keys values config=ReplicateConfig())
    upsert_from(key buffer_ptr size config=ReplicateConfig())
    upsert_parts(key *args config=ReplicateConfig())
    upsert_pub_tensor(key tensor config=ReplicateConfig())
    upsert_tensor(key tensor)
    upsert_tensor_from(key buffer_ptr size)
    upsert_tensor_with_parallelism(key tensor parallelism=None config=ReplicateConfig() writer_partition=None)
    upsert_tensor_with_parallelism_from(key buffer_ptr size parallelism=None config=ReplicateConfig() writer_partition=None)
class MooncakeHostMemAllocator
    alloc(arg0)
    free(arg0)
const OPTIMIZER_STATE ObjectDataType.OPTIMIZER_STATE
enum ObjectDataType UNKNOWN=0 KVCACHE=1 TENSOR=2 WEIGHT=3 SAMPLE=4 ACTIVATION=5 GRADIENT=6 OPTIMIZER_STATE=7 METADATA=8 GENERAL=9
const PENDING TaskStatus.PENDING
const PROCESSING TaskStatus.PROCESSING
class ParallelAxis
    .expert_id
    .kind
    .rank
    .size
    .split_dim
    .stage_id
class QueryTaskResponse
    .assigned_client
    .created_at_ms_epoch
    .id
    .last_updated_at_ms_epoch
    .message
    .status
    .type
const REMOVED ReplicaStatus.REMOVED
const REPLICA_COPY TaskType.REPLICA_COPY
const REPLICA_MOVE TaskType.REPLICA_MOVE
class ReadTarget
    .mode
    .parallelism
class RegisteredBufferLease
    .buffer
    .ptr
    release()
    .size
class RegisteredBufferLeaseView
    .buffer
class RegisteredBufferPool
    __init__(store max_bytes=0 min_size_class=65536 max_size_class=None alignment=8388608 block_on_exhaustion=True default_timeout=None max_regions=None prewarm_size=None prewarm_count=0)
    acquire(size block=None timeout=None)
    buffer(size block=None timeout=None)
    close()
    prewarm(size count)
class ReplicaDescriptor
    get_disk_descriptor()
    get_memory_descriptor()
    is_disk_replica()
    is_local_disk_replica()
    is_memory_replica()
    .status
enum ReplicaStatus UNDEFINED=0 INITIALIZED=1 PROCESSING=2 COMPLETE=3 REMOVED=4 FAILED=5
class ReplicateConfig
    .data_type
    .dfs_replica_num
    .group_ids
    .nof_replica_num
    .prefer_alloc_in_same_node
    .preferred_nof_segments
    .preferred_segment
    .preferred_segments
    .replica_num
    .soft_pin_action
    .soft_pin_ttl_ms
    .with_hard_pin
const SAMPLE ObjectDataType.SAMPLE
const SUCCESS TaskStatus.SUCCESS
enum SoftPinAction PRESERVE=0 ENABLE=1 DISABLE=2
const TENSOR ObjectDataType.TENSOR
enum TaskStatus PENDING=0 PROCESSING=1 SUCCESS=3 FAILED=2
enum TaskType REPLICA_COPY=0 REPLICA_MOVE=1
class TensorParallelism
    .axes
const UNDEFINED ReplicaStatus.UNDEFINED
const UNKNOWN ObjectDataType.UNKNOWN
const WEIGHT ObjectDataType.WEIGHT
bind_to_numa_node(node)
get_alloc_func_addr()
get_free_func_addr()
"""

ENGINE = """
class InnerTransferEngine
const Read TransferOpcode.Read
class RpcInterface
    initialize(listen_address='' thread_count=0 timeout_seconds=30 pool_size=100)
    initialize_client(pool_size=100 timeout_seconds=30)
    initialize_server(listen_address thread_count=8 timeout_seconds=30)
    send_data(target_address data)
    send_data_async(target_address data loop)
    send_tensor(target_address tensor)
    send_tensor_async(target_address tensor loop)
    set_data_receive_callback(arg0)
    set_tensor_receive_callback(arg0)
    start_server()
    start_server_async()
    stop_server()
const SUPPORT_CUDA False
const SUPPORT_EFA False
const SUPPORT_HIP False
const SUPPORT_INTRA_NVLINK False
const SUPPORT_MNNVL False
const SUPPORT_MUSA False
class SharedSegment
    base_addr()
    complete(blobs)
    device_addr()
    ready()
    size()
class TransferEngine
    allocate_managed_buffer(arg0)
    batch_register_memory(buffer_addresses capacities location='*')
    batch_transfer_async(target_hostname buffers peer_buffer_addresses lengths opcode transport_hint='')
    batch_transfer_async_read(target_hostname buffers peer_buffer_addresses lengths transport_hint='')
    batch_transfer_async_write(target_hostname buffers peer_buffer_addresses lengths transport_hint='')
    batch_transfer_sync(target_hostname buffers peer_buffer_addresses lengths opcode notify=None transport_hint='')
    batch_transfer_sync_read(target_hostname buffers peer_buffer_addresses lengths transport_hint='')
    batch_transfer_sync_write(target_hostname buffers peer_buffer_addresses lengths transport_hint='')
    batch_unregister_memory(arg0)
    free_managed_buffer(arg0 arg1)
    get_batch_transfer_status(arg0)
    get_engine()
    get_engine_ptr()
    get_first_buffer_address(arg0)
    get_local_topology(device_name=None)
    get_notifies()
    get_rpc_port()
    initialize(arg0 arg1 arg2 arg3)
    initialize_ext(arg0 arg1 arg2 arg3 arg4)
    read_bytes_from_buffer(arg0 arg1)
    register_memory(buffer_addr capacity location='*')
    send_probe(peer_server_name)
    transfer_check_status(arg0)
    transfer_submit_write(target_hostname buffer peer_buffer_address length transport_hint='')
    transfer_sync(target_hostname buffer peer_buffer_address length opcode notify=None transport_hint='')
    transfer_sync_read(target_hostname buffer peer_buffer_address length transport_hint='')
    transfer_sync_write(target_hostname buffer peer_buffer_address length transport_hint='')
    unregister_memory(arg0)
    warmup_efa_segment(segment_name)
    write_bytes_to_buffer(arg0 arg1 arg2)
class TransferNotify
    __init__(name msg)
    .msg
    .name
enum TransferOpcode Read=0 Write=1
const Write TransferOpcode.Write
create_rpc_client(local_rank=0 world_size=1)
create_rpc_server(local_rank=0 world_size=1)
"""

CONFIG = """
class MooncakeConfig
    from_file(file_path)
    load_from_env()
    __init__(local_hostname metadata_server global_segment_size local_buffer_size protocol device_name master_server_address enable_ssd_offload=False ssd_offload_path='' tenant_id='default' enable_client_http_server=False client_http_port=9300)
"""
