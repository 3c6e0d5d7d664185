"""open_qa: an open question whose answer a judge compares with the expected one."""
