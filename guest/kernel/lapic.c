// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * lapic.timer_hz=<number>: how often a second the timers of the local APICs count, undivided, where the hypervisor
 * knows. Otherwise the kernel measures it at every start, in a tenth of a second during which it does nothing else, and
 * is mistaken where the host does not run the guest meanwhile.
 */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <asm/apic.h>

static int __init lapic_timer_told(char *rate)
{
	unsigned int hz;

	if (!rate || kstrtouint(rate, 10, &hz) || hz < HZ)
		return -EINVAL;
	lapic_timer_period = hz / HZ;
	return 0;
}
early_param("lapic.timer_hz", lapic_timer_told);
