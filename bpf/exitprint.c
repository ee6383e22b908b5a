/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * exitprint: counts which exit address source NAT gives to which peer.
 *
 * What it watches: the first packet of each flow, after source NAT and before its conntrack entry is
 * confirmed, by one of two hooks that call the same observe():
 *   on_packet   a netfilter link at POSTROUTING, just before confirmation (kernels 6.4 and newer);
 *   on_confirm  a kprobe on __nf_conntrack_confirm (older kernels; sees every namespace, so it compares ours).
 * What it keeps: counts in maps. No event, no destination and no packet ever goes to user space.
 * What it changes: nothing. It reads, and the one return value is accept.
 *
 * Caveats: when two processors see the first packet of one flow at the same moment, conntrack keeps one entry
 * and both packets are counted. A session's first flow may be counted twice by the same race. The kernel skips
 * a kprobe's program on a processor that is in a bpf() call on a map at that moment, and old ones do not count it;
 * the service makes few such calls. Behind a VRF, a packet's interface is the VRF: its peers are not known.
 *
 * Offsets of kernel structs, table sizes and the secret come from the loader as macros (detector/kernel).
 */
#include <linux/types.h>
#include <linux/ptrace.h>

#include "layout.h"
#include "tables.h"
#include "flow.h"
#include "siphash.h"
#include "predictor.h"
#include "contrasts.h"
#include "exits.h"
#include "pairs.h"
#include "observe.h"

struct bpf_nf_ctx {
	const void *state;
	void *skb;
};

#ifdef EP_RDONLY_CAST
int on_packet(struct bpf_nf_ctx *ctx)
{
	void *skb = ctx->skb;
	u64 nfct = direct_read64(skb, EP_SKB_NFCT);

	/* Nearly all packets end here; the hint keeps this way out beside the way in, in one line of the cache. */
	if (likely(!may_matter(nfct)))
		return NF_ACCEPT;
	observe_packet(ctx->state, skb, nfct);
	return NF_ACCEPT;
}
#else
int on_confirm(struct pt_regs *ctx)
{
	observe_confirm((void *)PT_REGS_PARM1(ctx));
	return 0;
}
#endif
