"""SSH by paramiko, in a child process: the second carrier of the SFTP session.

`carrier` is the side of the engine; `child` is the process, which reads the user's ssh_config
(`site`), checks host keys (`hostkeys`) and logs in (`login`), as ssh would.
"""
