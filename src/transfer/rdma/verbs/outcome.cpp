#include "transfer/rdma/verbs/outcome.h"

namespace moonpool::transfer::rdma {

Completion::Outcome outcome_of(ibv_wc_status status) {
  using Outcome = Completion::Outcome;
  switch (status) {
    case IBV_WC_SUCCESS:
      return Outcome::kDone;
    case IBV_WC_WR_FLUSH_ERR:
      return Outcome::kFlushed;
    // The responder answered, and the answer was no: key, range or right; or it could not carry out what it had accepted, because its own
    // memory or queue pair went away meanwhile.
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_INV_RD_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
      return Outcome::kRefused;
    // This side's request, memory or key.
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_EEC_OP_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
    case IBV_WC_LOC_RDD_VIOL_ERR:
    case IBV_WC_MW_BIND_ERR:
      return Outcome::kLocal;
    // LOC_QP_OP_ERR is what soft-RoCE says of a packet that its interface, which is down, cannot send (and soft-iWARP of work that was
    // under way when its connection ended). No answer (RETRY_EXC, RNR_RETRY_EXC, RESP_TIMEOUT), one that makes no sense (BAD_RESP), or a
    // NIC that is broken (FATAL, GENERAL).
    default:
      return Outcome::kPath;
  }
}

}  // namespace moonpool::transfer::rdma
