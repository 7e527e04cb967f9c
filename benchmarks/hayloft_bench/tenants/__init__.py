"""The workload ``tenants``: what the readers of one tenant notice while another tenant attacks the daemon that both
share. The attacks and the attacker's stores run in a process of their own."""
