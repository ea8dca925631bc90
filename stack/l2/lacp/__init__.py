"""Link aggregation control: which links of two systems are one."""
