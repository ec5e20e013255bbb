"""Keys and signatures made with `openssl` and `minisign`, over the bytes of MODEL."""

MODEL = b"GGUF and some weights"

ECDSA = b"""\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAEic3bnVOU1bEgZQpyDPiueCg/rZ
wTX4CjY8bGIDK4qWYl5FfUo0QtBIuypo3zIUmFaV5/MBi5KHgPYDWcxUQQ==
-----END PUBLIC KEY-----
"""
ECDSA_SIGNATURE = b"MEYCIQDe/RvjFWyETuRGUZJ/AA0l71leP8FwMEuhr5SO3ZQ6+wIhAIv87NMs7YRCNWuvkmMWGlSiRc/TuE9Twr+dj0TFLNQQ"
RSA = b"""\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqN5elzDax1rv7Q/t/yZ3
DWEjURDuuFbXh/COzOtoaP/2GDgtPPTZDWaUx1F1lm5Zek+N8WTusZk4r0wHs0cn
0yGCD9mWUa7pYPPimyQCL1vqloNHSJARVa+LM133Lgb3hGKeuZN9Zqot2Mp8t+B4
xZlK/EndWF4R4tpBBVSQQLAQ6nEMH234ii3k3uYBIKGG7oCzsz+l4skizxtmbXFD
R5hQ+Ua4625uK4dTs68vER+D7FlAmG2okpevpRH3Yxggyebp+6mFITrZVTMFwsJi
OjwNTSARSdKF5A1kSFVFWXHZ1rEUXKsAdWgKkhIU2WFDBxZRKJ7ByiaJy97x2N2E
mQIDAQAB
-----END PUBLIC KEY-----
"""
RSA_SIGNATURE = (
    b"mRAkJVJuX0niEiR6Wn+23UkgPEy8IO+di8WKZU9LRsnjNnA51gHSuNUP2eKdKEcT4rhM6Bll28eQo4b52LTkuMhCIZLKtp/9"
    b"l0b3qpLVa/mRV+oAQauttD68S2mrFwqa6Zsqp12O7bxRKdZebQAUW4nGVOZAhSd75735cjoGhmFP6z00livNr95YCT09xVdB"
    b"Jq00N01UiFtF6aa4q7mnEnxlwdxI1lspeX1Ye9QGdg4mML7qOh4s1sQhapd75VFZhUmTtQwtHygDV2iTB6gWntduIjVhm8tG"
    b"nm7IbriNkjqPg6D753LW+klR3/cyEnTS2rwNLVjk+ZlcgzcK8NG7/Q=="
)
MINISIGN = b"""\
untrusted comment: minisign public key 59FA9C9BBEE3A03D
RWQ9oOO+m5z6WZV/sLrOf+UevPZhr9G2YEk8V3sSw9RfwwNHHMRrp1dS
"""
MINISIGN_SIGNATURE = b"""\
untrusted comment: signature from minisign secret key
RUQ9oOO+m5z6WTF+XMAcuHzWqLlPLTYa6pUoDyKgbwNqjx5eOy4Fjeypb7rLL3a/mDKgD9w2Yj94FU33ZgAhQC5+ZzVrmzse3gA=
trusted comment: made for a test
5AqkKzU1h7LgwluCIq7D9K78YhS5Epfzxradej2p1hKdiCpHfUoU5jZJj6CKc19mLZfyvfxJQCnqpw4E4la5Aw==
"""
MINISIGN_LEGACY = b"""\
untrusted comment: signature from minisign secret key
RWQ9oOO+m5z6Wd7WOFRoDpWx+6udN0xd1RyScI9TaQMbQufvk4LBNl6NtUSJtYf1m9SLXR0fCJ3sBlClVY9zU1e83t6nELCOMwI=
trusted comment: timestamp:1795578916	file:m.gguf
Qervk2Pmsgv2zxlmjg/WGAekLmjlcg0+zgsOhcDMoh9KHD6aA95a5dkuRNewFRBSBpoeVD1J9/y3Qw4KfyFIBQ==
"""
